"""Signals through the models, the export and the quantization."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import signals
import torch

from kdedge.benchmarks.session import check_fits, open_model, run_model
from kdedge.errors import InputError
from kdedge.export.c99.network import read_network
from kdedge.export.graph import read_model
from kdedge.export.onnx_export import check_parity, export_student
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.proof import integer_proof, why_not_integer
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.torch_graph import TorchGraph
from kdedge.inputs import InputSpec, image_input, signal_input
from kdedge.pipeline.distill.hints import _to_common_size
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.teacher import build_teacher, fold_batch_norms, hint_candidates
from kdedge.pipeline.training.signal_augmentations import augment_signals, signal_augmentations

WINDOWS = np.concatenate([signals.waves(label, 40, 64, 0) for label in (0, 1)])
SPEC = signal_input(64, signals.CHANNELS, WINDOWS.mean((0, 1)), 1 / WINDOWS.std((0, 1)), 50.0)
CANDIDATE = Candidate(calibration_images=64)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return build_student("signal-s", 2, SPEC).eval()


@pytest.fixture(scope="module")
def path(student, tmp_path_factory):
    file = tmp_path_factory.mktemp("signal") / "student.onnx"
    export_student(student, SPEC, ["slow", "fast"], file)
    check_parity(student, file)
    return file


@pytest.fixture(scope="module")
def quantizer(path):
    return Quantizer.from_model(read_model(path), WINDOWS)


def test_the_deployed_model_takes_the_users_units(student, path):
    model = open_model(path)
    assert model.spec == SPEC
    props = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert InputSpec.from_json(json.loads(props["kdedge.preprocessing"])) == SPEC
    with torch.no_grad():
        expected = student(torch.from_numpy(SPEC.normalised(WINDOWS))).numpy()
    np.testing.assert_allclose(run_model(model, WINDOWS), expected, atol=1e-4)


def test_every_layer_runs_as_integers_and_batches_do_not_matter(path, quantizer, tmp_path):
    data = quantizer.build(CANDIDATE)
    proof = integer_proof(data)
    assert why_not_integer(proof) == ""
    assert (proof["integer_convs"], proof["integer_gemms"]) == (5, 1)
    (tmp_path / "int8.onnx").write_bytes(data)
    model, fp32 = open_model(tmp_path / "int8.onnx"), run_model(open_model(path), WINDOWS)
    logits = model.logits(WINDOWS[:64])
    np.testing.assert_array_equal(logits, np.concatenate([model.logits(WINDOWS[i : i + 1]) for i in range(64)]))
    assert np.abs(run_model(model, WINDOWS) - fp32).max() < 0.1 * np.abs(fp32).max()


def test_a_float_first_layer_is_found(quantizer):
    proof = integer_proof(quantizer.build(CANDIDATE, exclude=[quantizer.layers[0]]))
    assert "float" in why_not_integer(proof)
    assert why_not_integer(proof, [quantizer.layers[0]]) == ""


def test_the_trainable_graph_computes_what_onnxruntime_does(quantizer):
    model = onnx.load_model_from_string(quantizer.build(CANDIDATE))
    graph = TorchGraph(model, Weights(quantizer.core), reduce_range=True)
    with torch.no_grad():
        found = graph(torch.from_numpy(WINDOWS[:16])).numpy()
    expected = tensor_runner(model, ["logits"], SPEC)(WINDOWS[:16])[0]
    # Values at the middle of two levels may be rounded either way.
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


@pytest.mark.parametrize("length", [16, 64, 128, 256, 512])
def test_students_take_any_window_and_keep_to_their_budget(length):
    spec = signal_input(length, "abcdef", [0] * 6, [1] * 6)
    for name, most in (("signal", 0.2e6), ("signal-s", 0.05e6)):
        student = build_student(name, 7, spec).eval()
        assert sum(parameter.numel() for parameter in student.parameters()) <= most
        with torch.no_grad():
            assert student(torch.zeros(2, *spec.core_shape)).shape == (2, 7)


def test_students_are_for_images_or_for_signals():
    with pytest.raises(InputError, match="--student lite is not for signals") as caught:
        build_student("lite", 2, SPEC)
    assert caught.value.hint == "use --student signal or signal-s"
    with pytest.raises(InputError, match="--student signal is not for images"):
        build_student("signal", 2, image_input(32))


def test_a_teacher_along_time_has_blocks_for_hints():
    teacher = build_teacher("resnet18", 2, "signal", channels=2).eval()
    assert len(hint_candidates(teacher)) == 8
    assert {module.kernel_size[0] for module in teacher.modules() if isinstance(module, torch.nn.Conv2d)} == {1}
    assert fold_batch_norms(teacher, SPEC) is not teacher
    with pytest.raises(InputError, match="--teacher mobilenet_v2 is for images"):
        build_teacher("mobilenet_v2", 2, "signal", channels=2)


def test_maps_of_height_1_keep_it():
    one, other = _to_common_size(torch.rand(2, 3, 1, 64), torch.rand(2, 5, 1, 32))
    assert (one.shape, other.shape) == ((2, 3, 1, 32), (2, 5, 1, 32))


def test_augmentations_shift_scale_and_jitter_and_never_flip():
    windows = torch.arange(10.0).reshape(1, 1, 1, 10).repeat(2, 2, 1, 1)
    plain = augment_signals(windows, np.array([2, 4]), shift=2)
    assert torch.equal(plain[0], windows[0])
    assert plain[1, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    for number in range(signal_augmentations(2)):
        changed = augment_signals(windows[:1], np.array([number]), shift=2)
        assert changed[0, 0, 0, -1] > changed[0, 0, 0, 0], "not in reverse"
        assert torch.equal(changed, augment_signals(windows[:1], np.array([number]), shift=2))


def test_a_model_of_another_rate_or_channels_is_refused(path):
    model = open_model(path)
    check_fits(model, ["slow", "fast"], dataclasses.replace(SPEC, rate_hz=0.0))
    with pytest.raises(InputError, match="takes 50 samples per second, the data set has 100"):
        check_fits(model, ["slow", "fast"], dataclasses.replace(SPEC, rate_hz=100.0))
    with pytest.raises(InputError, match=r"with the channels ax, ay, the data set has .* with the channels ay, ax"):
        check_fits(model, ["slow", "fast"], dataclasses.replace(SPEC, channels=("ay", "ax")))


def test_the_c_code_is_for_images(path):
    with pytest.raises(InputError, match=r"takes windows of 64 samples .*; the C code is for images"):
        read_network(path)

"""Equalisation, bias correction, error-compensated rounding and fine-tuning, each on its own."""

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantized import trainable_graph_sqnr_db
from small_networks import PER_TENSOR, core, images, quantizer_of, sqnr

from kdedge.benchmarks.session import import_onnxruntime, session_options
from kdedge.export import lookup
from kdedge.export.quantize import rounding
from kdedge.export.quantize.biases import correct_biases
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.equalise import equalise
from kdedge.export.quantize.layers import Layer, Weights, quantized_layer
from kdedge.export.quantize.qat import fine_tune
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.rounding import round_with_compensation
from kdedge.export.quantize.torch_graph import OPERATORS, convolve


def test_equalisation_changes_nothing_in_float() -> None:
    model = core(spread=3)
    pixels = images(16)
    before, after = (tensor_runner(graph, ["logits"])(pixels)[0] for graph in (model, equalise(model)))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_equalised_pairs_have_equal_ranges() -> None:
    weights = Weights(equalise(core(spread=3)))
    for first, second in zip(weights.layers[:2], weights.layers[1:3], strict=True):
        made = np.abs(weights.weight(first)).max((1, 2, 3))
        used = np.abs(weights.weight(second)).max((0, 2, 3))
        np.testing.assert_allclose(made, used, rtol=0.02)


def test_equalisation_repairs_channels_over_three_decades() -> None:
    model = core(spread=3)
    broken = quantizer_of(model)
    repaired = broken.equivalent(equalise(model))
    assert sqnr(broken, PER_TENSOR, model) < 15
    assert sqnr(repaired, PER_TENSOR, model) > sqnr(broken, PER_TENSOR, model) + 10


def test_a_dead_channel_is_left_as_it_is() -> None:
    weights = Weights(core())
    first = weights.layers[0]
    values, bias = weights.weight(first), weights.bias(first)
    values[3] *= 1e-20
    bias[3] = 0.5
    weights.set_weight(first, values)
    weights.set_bias(first, bias)
    model = equalise(weights.core)
    changed = Weights(model)
    assert changed.bias(changed.layers[0])[3] == np.float32(0.5)
    before, after = (sqnr(quantizer_of(graph), PER_TENSOR, weights.core) for graph in (weights.core, model))
    assert after > before - 1


def test_a_branch_is_not_equalised() -> None:
    model = core(spread=3)
    model.graph.output.append(helper.make_tensor_value_info("relu1", TensorProto.FLOAT, None))
    weights, changed = Weights(model), Weights(equalise(model))
    np.testing.assert_array_equal(weights.weight(weights.layers[0]), changed.weight(changed.layers[0]))
    assert not np.array_equal(weights.weight(weights.layers[1]), changed.weight(changed.layers[1]))


def test_bias_correction_takes_the_mean_error_away() -> None:
    model = core(spread=1)
    before = quantizer_of(model)
    after = correct_biases(before, PER_TENSOR)

    def mean_error(quantizer: Quantizer) -> float:
        graph = onnx.load_model_from_string(quantizer.build(PER_TENSOR))
        # The images it was measured on: only there the mean is exactly what was taken away.
        got, wanted = (tensor_runner(item, ["logits"])(before.images)[0] for item in (graph, model))
        return float(np.abs((got - wanted).mean(0)).max())

    assert mean_error(after) < mean_error(before) / 5
    assert sqnr(after, PER_TENSOR, model) > sqnr(before, PER_TENSOR, model) + 1


def test_bias_correction_builds_the_model_once_and_foresees_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = core(spread=1)
    quantizer = quantizer_of(model)
    built = []
    build = Quantizer.build
    monkeypatch.setattr(Quantizer, "build", lambda *args, **options: built.append(1) or build(*args, **options))
    corrected = correct_biases(quantizer, PER_TENSOR)
    assert len(built) == 1
    # Corrected again, from the biases that it found: nothing is left to correct but their rounding.
    again = correct_biases(corrected, PER_TENSOR)
    first, second = Weights(corrected.core), Weights(again.core)
    for layer, same in zip(first.layers, second.layers, strict=True):
        moved = np.abs(first.bias(layer) - second.bias(same)).max()
        assert moved < 0.05 * np.abs(first.bias(layer) - Weights(model).bias(layer)).max(), layer.name


def test_compensated_rounding_beats_bias_correction() -> None:
    model = core(spread=1)
    before = quantizer_of(model)
    after = round_with_compensation(before, PER_TENSOR)
    assert sqnr(after, PER_TENSOR, model) > sqnr(correct_biases(before, PER_TENSOR), PER_TENSOR, model) + 3
    # The quantizer returns these integers: they are on its grid and no scale moved.
    old, new = Weights(before.core), Weights(after.core)
    for layer, changed in zip(old.layers, new.layers, strict=True):
        step = np.abs(old.weight(layer)).max() / 64
        assert np.abs(new.weight(changed)).max() == pytest.approx(64 * step)
        assert np.abs(new.weight(changed) / step - np.round(new.weight(changed) / step)).max() < 1e-3


@pytest.mark.parametrize(("weights", "per_channel"), [("s8", True), ("s8", False), ("u8", False)])
def test_compensated_rounding_builds_the_model_once_and_foresees_the_next(
    weights: str, per_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Candidate(weights=weights, per_channel=per_channel, reduce_range=False, calibration_images=128)
    quantizer, foreseen = quantizer_of(core(spread=1)), []
    monkeypatch.setattr(rounding, "correct_biases", lambda same, *_: same)
    set_weight = rounding.set_quantized_weight
    monkeypatch.setattr(
        rounding, "set_quantized_weight", lambda model, *rest: [set_weight(model, *rest), foreseen.append(model)]
    )
    built = onnx.load_model_from_string(round_with_compensation(quantizer, candidate).build(candidate))
    assert len(foreseen) == len(quantizer.layers)
    for name in quantizer.layers:
        expected, found = (
            lookup.arrays(model.graph)[lookup.producers(model.graph)[quantized_layer(model, name)[0].input[1]].input[0]]
            for model in (built, foreseen[-1])
        )
        np.testing.assert_array_equal(found, expected)


def test_rounding_passes_the_error_on_to_inputs_that_vary_together() -> None:
    rows = np.array([[0.4, 0.4, 3.0, -3.0]])
    covariance = np.array([[1.0, 0.99, 0.0, 0.0], [0.99, 1.0, 0.0, 0.0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    assert rounding._round_rows(rows, covariance).tolist() == [[0, 1, 3, -3]]
    assert rounding._round_rows(rows, np.eye(4)).tolist() == [[0, 0, 3, -3]]


def test_rounding_in_blocks_equals_rounding_column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    inputs, rows = rng.normal(size=(500, 40)) @ rng.normal(size=(40, 40)), rng.normal(scale=9, size=(16, 40))
    covariance = np.cov(inputs.T)
    blocked = rounding._round_rows(rows, covariance)
    monkeypatch.setattr(rounding, "_BLOCK", 7)
    np.testing.assert_array_equal(rounding._round_rows(rows, covariance), blocked)

    def error(rounded: np.ndarray) -> float:
        return float(((rounded - rows) @ covariance * (rounded - rows)).sum())

    assert error(blocked) < 0.6 * error(np.rint(rows))
    assert (blocked.min(1) >= np.rint(rows.min(1))).all()
    assert (blocked.max(1) == np.rint(rows.max(1))).all()


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        (1, {}),
        (2, {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        (4, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        (1, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ],
)
def test_covariances_are_those_of_the_inputs_of_a_convolution(
    groups: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 4, 7, 9)).cumsum(2).astype(np.float32)
    weight = rng.normal(size=(8, 4 // groups, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], group=groups, **options)
    layer = Layer(node, lookup.attributes(node))
    monkeypatch.setattr(rounding, "_DAMPING", 0.0)
    found = rounding._covariances(layer, (3, 3), lambda _: [values], np.zeros((6, 8, 8, 3), np.uint8))
    outputs = convolve(layer.attributes, torch.from_numpy(values), torch.from_numpy(weight)).numpy()
    by_group = weight.reshape(groups, 8 // groups, -1)
    predicted = (by_group @ found * by_group).sum(2).ravel()
    np.testing.assert_allclose(predicted, outputs.transpose(1, 0, 2, 3).reshape(8, -1).var(1), rtol=1e-3)


@pytest.mark.parametrize("sides", [(7, 9), (2, 1), (9,), (4, 5, 6)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2, 2]}),
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [1, 2, 2]}),
        ("Conv", {"pads": [2, 1, 1, 2, 1, 2]}),
        ("MaxPool", {"auto_pad": "SAME_UPPER", "strides": [2, 3, 1]}),
        ("MaxPool", {"pads": [1] * 6, "strides": [2, 2, 2], "ceil_mode": 1}),
        ("AveragePool", {"pads": [1] * 6, "strides": [2, 2, 2]}),
        ("AveragePool", {"pads": [1] * 6, "count_include_pad": 1}),
        ("AveragePool", {"auto_pad": "SAME_LOWER", "strides": [2, 2, 2]}),
    ],
)
def test_the_trainable_graph_pads_as_onnxruntime_does(
    kind: str, options: dict[str, Any], sides: tuple[int, ...]
) -> None:
    import torch

    axes = len(sides)
    lengths = {"strides": axes, "pads": 2 * axes}  # of the options that have a value per axis
    options = {name: value[: lengths[name]] if name in lengths else value for name, value in options.items()}
    rng = np.random.default_rng(0)
    given = {"x": rng.normal(size=(2, 4, *sides)).astype(np.float32)}
    if kind == "Conv":
        given["w"] = rng.normal(size=(4, 4, *[3] * axes)).astype(np.float32)
    node = helper.make_node(kind, list(given), ["y"], kernel_shape=[3] * axes, **options)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in given.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "node", values, [output]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), session_options(1))
    found = OPERATORS[kind](lookup.attributes(node), *map(torch.from_numpy, given.values()))
    np.testing.assert_allclose(found.numpy(), session.run(None, given)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [0, 255])
def test_images_of_one_color_can_be_rounded(constant: int) -> None:
    model = core(spread=1)
    quantizer = quantizer_of(model)
    flat = dataclasses.replace(quantizer, images=np.full_like(quantizer.images, constant), statistics={})
    assert np.isfinite(sqnr(round_with_compensation(flat, PER_TENSOR), PER_TENSOR, model))


def test_fine_tuning_repairs_what_rounding_cannot() -> None:
    model = core(spread=1.5)  # 28.6 and 32.3 dB; with 2, 22.8 and 22 to 25 dB, by CPU and images
    rounded = round_with_compensation(quantizer_of(model), PER_TENSOR)
    trained = fine_tune(rounded, PER_TENSOR, images(512, seed=1))
    assert sqnr(trained, PER_TENSOR, model) > sqnr(rounded, PER_TENSOR, model) + 1 > 10


def test_the_trainable_graph_computes_what_onnxruntime_does() -> None:
    for candidate in (PER_TENSOR, Candidate(calibration_images=128)):
        assert trainable_graph_sqnr_db(quantizer_of(core(spread=1)), candidate, images(32, seed=2)) > 40

"""The quantize stage: integers from the pixel on, close to FP32, reproducible, calibrated on training images."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized import as_written_and_as_run

from kdedge.benchmarks.kernels import int8_proof
from kdedge.benchmarks.session import open_model, run_model
from kdedge.errors import InputError
from kdedge.export.graph import add_input_adapter, cut_input_adapter, read_model
from kdedge.export.quantize import model as quantize
from kdedge.export.quantize.candidates import RULE, Candidate, Score, choose, formats, score
from kdedge.export.quantize.proof import integer_proof, why_not_integer
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.inputs import image_input
from kdedge.manifest import load_manifest
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.run_dir import StageSpec, run_stage
from kdedge.pipeline.stages import quantize as stage

pytestmark = pytest.mark.usefixtures("brief_search")


@pytest.fixture(scope="module")
def quantizer(exported: Path) -> Quantizer:
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)
    return Quantizer.from_model(read_model(exported / "student.onnx"), images)


def test_an_interrupted_stage_ends_in_the_files_of_an_uninterrupted_one(
    quantized: Path, tmp_path: Path, dataset: Any, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    config = build_config({"quantize": {"calibration_images": 64}})
    shutil.copytree(exported, tmp_path / "export")
    spec = StageSpec("quantize", ("export",), stage.run, lambda _: {}, lambda _: {})
    seen: list[Any] = []
    original = Quantizer.from_model

    def spy(model: Any, images: Any) -> Any:
        seen.append(images)
        return original(model, images)

    monkeypatch.setattr(Quantizer, "from_model", spy)
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "draw_figures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stage(spec, config, tmp_path)
    left = {"student.int8.onnx", "sensitivity.json", "candidates.json"}
    for name in left:
        path = tmp_path / ".quantize.partial" / name
        path.write_bytes(path.read_bytes()[:100])
    run_stage(spec, config, tmp_path)
    out = tmp_path / "quantize"
    assert sorted(path.name for path in out.iterdir()) == sorted([*left, "figures", "manifest.json"])
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["candidates.png", "sensitivity.png"]
    manifest = load_manifest(out)
    assert manifest["outputs"].keys() >= left
    for name in left - {"candidates.json"}:  # which has measured times
        assert (out / name).read_bytes() == (quantized / name).read_bytes()

    record, metrics = json.loads((out / "candidates.json").read_text()), manifest["facts"]
    assert record["chosen"] == metrics["candidate"]["name"]
    assert (record["rule"], record["target"]) == (RULE, "portable")
    assert [step["rung"] for step in record["rungs"][:2]] == ["search", "error-compensated rounding"]
    assert record["rung"] == record["rungs"][-1]["rung"] == metrics["rung"]
    assert (record["calibration_images"], record["scored_images"]) == (64, 80)
    chosen = next(item for item in record["candidates"] if item["name"] == record["chosen"])
    assert chosen["refused"] is None
    assert chosen["p50_ms"] > 0
    assert {"top1_pct", "loss_pp", "flips", "sqnr_db", "bytes", "per_channel"} <= chosen.keys()
    assert (metrics["proof"]["integer_convs"], metrics["proof"]["integer_gemms"]) == (5, 1)

    # It calibrates on training images only: FakeDataset.test() raises, the last 80 training images are for validation.
    train = {image.tobytes() for image in dataset.train().images[:160]}
    assert len(seen[0]) == 160  # all there are: four times the 64 asked for, for the largest size that is tried
    assert {image.tobytes() for image in seen[0]} <= train


def test_int8_is_close_to_fp32(exported: Path, quantized: Path, dataset: Any) -> None:
    images = dataset.train().images
    fp32 = run_model(open_model(exported / "student.onnx"), images)
    int8 = run_model(open_model(quantized / "student.int8.onnx"), images)
    result = score(fp32, int8, dataset.train().labels)
    assert result.sqnr_db > 25
    assert result.flips <= len(images) * 0.03
    assert result.top1_pct > 80


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_deployed_graph(quantized: Path) -> None:
    model = onnx.load(quantized / "student.int8.onnx")
    types = [node.op_type for node in model.graph.node]
    assert not {"Cast", "Mul", "BatchNormalization", "Relu"} & set(types)
    pixels = model.graph.input[0]
    assert (pixels.name, pixels.type.tensor_type.elem_type) == ("pixels", TensorProto.UINT8)
    reader = next(node for node in model.graph.node if "pixels" in node.input)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert reader.op_type == "DequantizeLinear"
    assert constants[reader.input[1]] == np.float32(1) / np.float32(255)
    assert constants[reader.input[2]] == 0
    assert "logits" in next(node for node in model.graph.node if node.op_type == "Gemm").output
    props = {item.key: item.value for item in model.metadata_props}
    assert json.loads(props["kdedge.classes"]) == ["ant", "bee", "cat", "dog"]
    assert {"kdedge.pixels", "kdedge.image_size", "kdedge.version", "kdedge.quantization"} <= props.keys()
    assert [item.domain for item in model.opset_import] == [""]
    assert model.ir_version <= 10


def test_weights_use_seven_bits(quantized: Path) -> None:
    model = onnx.load(quantized / "student.int8.onnx")
    weights = [item for item in model.graph.initializer if item.data_type == TensorProto.INT8 and len(item.dims) > 1]
    assert len(weights) == 6
    assert max(np.abs(numpy_helper.to_array(item).astype(int)).max() for item in weights) <= 64


def test_too_few_training_images_are_all_used(
    exported: Path, tmp_path: Path, dataset: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run(
        build_config({"quantize": {"calibration_images": 500, "compare_formats": False}}),
        {"export": exported},
        tmp_path,
    )
    assert json.loads((tmp_path / "candidates.json").read_text())["calibration_images"] == 160
    captured = capsys.readouterr()
    assert "calibrating on all 160 training images" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("candidate", [*formats(64)[:2], Candidate(calibrator="mse")], ids=lambda item: item.name)
def test_every_portable_candidate_is_integer_from_the_pixel_on(quantizer: Quantizer, candidate: Candidate) -> None:
    proof = integer_proof(quantizer.build(candidate))
    assert why_not_integer(proof) == ""
    assert (proof["integer_convs"], proof["integer_gemms"]) == (5, 1)
    assert proof["before_first_conv"] == []
    assert "QLinearAdd" in proof["ops_by_type"]
    assert "QLinearAveragePool" in proof["ops_by_type"]
    assert "QuantizeLinear" not in proof["ops_by_type"]


def test_a_candidate_does_not_depend_on_those_before_it(quantizer: Quantizer, exported: Path) -> None:
    fresh = Quantizer.from_model(read_model(exported / "student.onnx"), quantizer.images)
    last = Candidate(calibrator="entropy")
    for candidate in formats(64):
        quantizer.build(candidate)
    assert quantizer.build(last) == fresh.build(last)


def test_a_layer_left_in_float_stays_in_float(quantizer: Quantizer, exported: Path) -> None:
    """onnxruntime quantizes float weights behind a Dequantize by itself, to 8 bits, when a session starts."""
    pixels = quantizer.images[:32]
    for layer in quantizer.layers:
        model = quantizer.build(Candidate(), exclude=[layer])
        proof = integer_proof(model)
        assert [label.split(" (")[0] for label in (*proof["float_convs"], *proof["float_gemms"])] == [layer]
        assert layer in why_not_integer(proof)
        assert why_not_integer(proof, [layer]) == ""
        as_written, as_run = as_written_and_as_run(model, pixels)
        # The logits are near 5: rounding of intermediate values differs by a step here and there, weights do not.
        assert np.abs(as_written - as_run).max() < 0.05


@pytest.mark.parametrize("layers", [("0.conv",), ("2.conv", "7")], ids="+".join)
def test_layers_that_a_repair_step_left_in_float_are_in_the_model_and_in_the_proof_of_the_benchmark(
    quantizer: Quantizer, tmp_path: Path, layers: tuple[str, ...]
) -> None:
    from kdedge.export.quantize.repair import RepairStep
    from kdedge.export.quantize.search import Trial

    model = quantizer.build(Candidate(), exclude=layers)
    trial = Trial(Candidate(), model, integer_proof(model), made([1], 30.0), "", layers)
    path = tmp_path / "student.int8.onnx"
    gate = {"verdict": "passed", "loss_pp": 0.0, "loss_upper95_pp": 0.1, "limit_pp": 0.5}
    step = RepairStep(f"{len(layers)} of 6 layers in float", trial, gate, quantizer)
    path.write_bytes(quantize._labelled(step, "portable", images=200))
    proof = int8_proof(path)
    assert (proof["float_on_purpose"], proof["float_by_accident"]) == (list(layers), [])
    # The pixels of a first layer in float are scaled and transposed by the model itself.
    pixels = quantizer.images[:8]
    logits = open_model(path).logits(pixels)
    whole = quantizer.build(Candidate())
    (tmp_path / "whole.onnx").write_bytes(whole)
    expected = open_model(tmp_path / "whole.onnx").logits(pixels)
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_classes_of_another_data_set(exported: Path, tmp_path: Path, config: Config, dataset: Any) -> None:
    dataset.class_names = ("ant", "bee", "cat")
    with pytest.raises(InputError, match="has 4 classes, the data set has 3"):
        stage.run(config, {"export": exported}, tmp_path)


# The proof -----------------------------------------------------------------------------------------------------------


def test_float_convolution_is_named(exported: Path) -> None:
    proof = integer_proof((exported / "student.onnx").read_bytes())
    assert proof["integer_convs"] == 0
    assert len(proof["float_convs"]) == 5
    assert len(proof["float_gemms"]) == 1
    assert re.search(r"runs these convolutions .* in float: 0\.conv", why_not_integer(proof))


def test_one_convolution_left_in_float_is_found(quantized: Path) -> None:
    model = onnx.load(quantized / "student.int8.onnx")
    conv = [node for node in model.graph.node if node.op_type == "Conv"][3]
    producer = {name: node for node in model.graph.node for name in node.output}
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    dequantize = producer[conv.input[1]]
    shape = constants[dequantize.input[0]].shape
    model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), "float_weight"))
    conv.input[1] = "float_weight"
    conv.name = "the_float_one"
    proof = integer_proof(model.SerializeToString())
    assert proof["integer_convs"] == 4
    assert "convolutions of the INT8 model in float: the_float_one" in why_not_integer(proof)


def test_an_operator_left_in_float_is_found(quantized: Path) -> None:
    model = onnx.load(quantized / "student.int8.onnx")
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    gemm.output[0] = "raw"
    model.graph.node.append(helper.make_node("Softmax", ["raw"], ["logits"], name="left"))
    assert "operators of the INT8 model in float: left" in why_not_integer(integer_proof(model.SerializeToString()))


def test_float_preprocessing_in_front_is_found(quantizer: Quantizer) -> None:
    proof = integer_proof(quantizer.build(Candidate()))
    found = why_not_integer({**proof, "before_first_conv": ["QuantizeLinear"]})
    assert "first integer convolution is preceded by QuantizeLinear" in found


# Choosing ------------------------------------------------------------------------------------------------------------


def made(right: list[int], sqnr_db: float) -> Score:
    return Score(0.0, 0.0, 0, 0, 0, sqnr_db, 0.0, np.array(right, bool), np.array(right, bool))


def test_noise_does_not_choose_but_sqnr_does() -> None:
    # One image more right is no evidence; 3 dB is.
    assert choose([made([1] * 99 + [0], 33.0), made([1] * 100, 30.0)]) == 0
    assert choose([made([1] * 100, 30.0), made([1] * 99 + [0], 33.0)]) == 1


def test_the_simplest_of_equals_is_chosen() -> None:
    assert choose([made([1] * 100, 30.2), made([1] * 100, 31.0), made([1] * 100, 30.9)]) == 0


def test_a_real_loss_is_refused_whatever_its_sqnr() -> None:
    assert choose([made([0] * 20 + [1] * 80, 40.0), made([1] * 100, 30.0)]) == 1


def test_with_the_balanced_metric_a_loss_of_the_rare_class_refuses() -> None:
    labels = np.repeat([0, 1], [1000, 40])
    common, rare = ([1] * start + [0] * 20 + [1] * (1020 - start) for start in (0, 1000))
    for balanced_over, chosen in ((None, 1), (labels, 0)):
        scores = [dataclasses.replace(made(kept, db), balanced_over=balanced_over)
                  for kept, db in ((common, 30.0), (rare, 40.0))]  # fmt: skip
        assert choose(scores) == chosen


def test_a_loss_of_few_groups_is_no_evidence() -> None:
    kept = [1] * 180 + [0] * 20
    groups = np.repeat(np.arange(10), 20).astype(str)  # all 20 losses are of one of 10 groups
    for of, chosen in ((None, 1), (groups, 0)):
        scores = [dataclasses.replace(made(right, db), groups=of) for right, db in ((kept, 40.0), ([1] * 200, 30.0))]
        assert choose(scores) == chosen


def test_a_gain_on_few_images_does_not_outweigh_the_sqnr() -> None:
    """FP32 gets 5 of 20 images of noise right; a poor candidate keeps 4 of them and gains 7 others by chance."""
    fp32 = np.zeros((20, 2), np.float32)
    fp32[:, 0] = 1
    labels = np.repeat([0, 1], [5, 15])
    close, far = fp32 + np.float32(0.01), fp32.copy()
    far[4:12] = far[4:12, ::-1]
    scores = [score(fp32, far, labels), score(fp32, close, labels)]
    assert [item.right.sum() for item in scores] == [11, 5]
    assert scores[1].sqnr_db > scores[0].sqnr_db + 10
    assert choose(scores) == 1


def test_score_by_hand() -> None:
    fp32 = np.array([[2, 0], [2, 0], [0, 2], [2, 0]], np.float32)
    int8 = np.array([[2, 0], [0, 2], [2, 0], [0, 2]], np.float32)
    result = score(fp32, int8, np.array([0, 0, 0, 1]))
    assert (result.fp32_only_right, result.int8_only_right, result.flips) == (1, 2, 3)
    assert result.top1_pct == 75
    assert result.loss_pp == -25
    assert result.sqnr_db == pytest.approx(10 * np.log10(16 / 24))
    assert score(fp32, fp32, np.zeros(4, np.int64)).sqnr_db == 200


# Files that do not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 50, 3000])
def test_truncated_model(exported: Path, tmp_path: Path, config: Config, dataset: Any, length: int) -> None:
    (tmp_path / "student.onnx").write_bytes((exported / "student.onnx").read_bytes()[:length])
    with pytest.raises(InputError, match=r"student\.onnx \(.* bytes\) is not a usable ONNX model"):
        stage.run(config, {"export": tmp_path}, tmp_path)


def test_missing_model(tmp_path: Path, config: Config, dataset: Any) -> None:
    with pytest.raises(InputError, match="no model at"):
        stage.run(config, {"export": tmp_path}, tmp_path)


def tiny_graph(input_name: str, nodes: list[Any], metadata: dict[str, str]) -> onnx.ModelProto:
    pixels = helper.make_tensor_value_info(input_name, TensorProto.UINT8, ["batch", 16, 16, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16, 16, 3])
    model = helper.make_model(helper.make_graph(nodes, "g", [pixels], [logits]))
    helper.set_model_props(model, metadata)
    return model


def test_foreign_model(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["input"], ["logits"], to=TensorProto.FLOAT)
    onnx.save(tiny_graph("input", [cast], {}), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"was not exported by kdedge: inputs \['input'\]"):
        read_model(tmp_path / "m.onnx")


def test_a_model_without_the_input_adapter(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["pixels"], ["logits"], to=TensorProto.FLOAT)
    with pytest.raises(InputError, match=r"begins with \['Cast'\]"):
        cut_input_adapter(tiny_graph("pixels", [cast], {"kdedge.classes": "[]"}), image_input(16))


def test_the_pixel_front_needs_the_exact_scale(quantizer: Quantizer) -> None:
    quantize_node = helper.make_node("QuantizeLinear", ["image", "s", "z"], ["logits"])
    model = tiny_graph("image", [quantize_node], {})
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.004), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    )
    with pytest.raises(ValueError, match="expected 1/255 and 0 uint8"):
        add_input_adapter(model, image_input(16))

"""The export stage: what the graph promises, parity, and refusing files that do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from kdedge.benchmarks.session import open_model, read_resize_mode
from kdedge.errors import InputError, StageError
from kdedge.export import onnx_export
from kdedge.export.graph import count_macs
from kdedge.inputs import image_input
from kdedge.pipeline.config import Config
from kdedge.pipeline.models import load
from kdedge.pipeline.stages import export


@pytest.fixture
def distilled(tmp_path: Path, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distill directory; `build_student` gives the tiny student."""
    monkeypatch.setattr(load, "build_student", lambda name, classes, spec, widths: tiny(classes, spec.size))
    save_file(tiny().state_dict(), tmp_path / "student.safetensors")
    info = {"arch": "tiny", "image_size": 16, "classes": ["ant", "bee", "cat", "dog"]}
    (tmp_path / "student.json").write_text(json.dumps(info))
    return tmp_path


def test_the_graph_keeps_its_promises(exported: Path) -> None:
    model = onnx.load(exported / "student.onnx")
    types = [node.op_type for node in model.graph.node]
    assert types[:4] == ["Cast", "Mul", "Transpose", "Conv"]
    assert types.count("Conv") == 5
    assert "BatchNormalization" not in types
    assert "AveragePool" in types
    assert (model.opset_import[0].version, model.ir_version) == (18, 8)  # for the oldest runtimes
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    props = {item.key: item.value for item in model.metadata_props}
    assert json.loads(props["kdedge.classes"]) == ["ant", "bee", "cat", "dog"]
    assert props["kdedge.image_size"] == "16"
    assert props["kdedge.pixels"] == "uint8 RGB NHWC, 0..255"
    assert json.loads(props["kdedge.preprocessing"]) == image_input(16).as_json()
    names = ("classes", "image_size", "pixels", "preprocessing", "version")
    assert set(props) == {f"kdedge.{name}" for name in names}


def test_no_path_of_this_machine_is_left_in_the_file(exported: Path) -> None:
    data = (exported / "student.onnx").read_bytes()
    assert b".py" not in data
    assert b"stack_trace" not in data


def test_parity_numbers(student: Any, exported: Path) -> None:
    metrics = onnx_export.check_parity(student, exported / "student.onnx")
    assert metrics["parity_batches"] == [1, 2, 64]
    assert metrics["parity_max_abs_diff"] < 1e-4 * metrics["parity_logit_scale"]


def test_parity_failure_says_the_numbers(student: Any, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "PARITY_BOUND", 1e-12)
    with pytest.raises(StageError, match=r"at batch 1 the largest logit difference is .* \(allowed .*predictions"):
        onnx_export.check_parity(student, exported / "student.onnx")


def test_parity_finds_other_weights(tiny: Callable[..., Any], exported: Path) -> None:
    with pytest.raises(StageError, match="differs from the torch student"):
        onnx_export.check_parity(tiny(), exported / "student.onnx")


def test_export_leaves_the_module_and_the_streams_alone(
    tiny: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = tiny(width=4).train()
    metrics = onnx_export.export_student(module, image_input(16), list("abcd"), tmp_path / "m.onnx", opset=20)
    assert module.training
    assert capfd.readouterr() == ("", "")
    assert metrics["params"] == sum(p.numel() for p in module.parameters())
    model = onnx.load(tmp_path / "m.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (20, 8)
    # 3x3 kernels: 16x16 positions at 3->4, 8x8 at 4->4 and 4->8, 4x4 at 8->8 and 8->12; then 12->4.
    expected = 9 * (256 * 3 * 4 + 64 * (4 * 4 + 4 * 8) + 16 * (8 * 8 + 8 * 12)) + 12 * 4
    assert metrics["macs"] == count_macs(model) == expected


def test_exporter_failure_is_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(StageError, match=r"torch\.onnx\.export failed"):
        onnx_export.export_student(Branching(), image_input(16), ["a", "b"], tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_stage_writes_the_model_and_its_facts(
    distilled: Path, tmp_path_factory: pytest.TempPathFactory, config: Config
) -> None:
    out = tmp_path_factory.mktemp("out")
    student = json.loads((distilled / "student.json").read_text()) | {"resize_mode": "pad"}
    (distilled / "student.json").write_text(json.dumps(student))
    metrics = export.run(config, {"distill": distilled}, out)
    assert [path.name for path in out.iterdir()] == ["student.onnx"]
    assert {"params", "macs", "conv_nodes", "parity_max_abs_diff"} <= metrics.keys()
    assert metrics["conv_nodes"] == 5
    json.dumps(metrics)
    model = open_model(out / "student.onnx")
    assert read_resize_mode(model.path, model.session) == "pad"
    logits = model.logits(np.zeros((3, 16, 16, 3), np.uint8))
    assert logits.shape == (3, 4)


def test_truncated_weights(distilled: Path, config: Config) -> None:
    path = distilled / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"student\.safetensors .* is damaged"):
        export.run(config, {"distill": distilled}, distilled)


@pytest.mark.parametrize("name", ["student.safetensors", "student.json"])
def test_missing_and_corrupt_files(distilled: Path, config: Config, name: str) -> None:
    (distilled / name).write_bytes(b"PK\x03\x04 neither safetensors nor JSON")
    with pytest.raises(InputError, match=name):
        export.run(config, {"distill": distilled}, distilled)
    (distilled / name).unlink()
    with pytest.raises(InputError, match=name):
        export.run(config, {"distill": distilled}, distilled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"9.weight": (1,)}, r"9\.weight is \(1,\), expected no such tensor"),
        ({"0.conv.weight": None}, r"0\.conv\.weight is missing"),
        ({"7.weight": (10, 24), "7.bias": (10,)}, r"7\.bias is \(10,\), expected \(4,\)"),
    ],
)
def test_weights_of_another_network(
    distilled: Path, tiny: Callable[..., Any], config: Config, change: dict[str, Any], message: str
) -> None:
    weights = tiny().state_dict()
    for key, shape in change.items():
        weights.pop(key, None)
        if shape:
            weights[key] = torch.zeros(shape)
    save_file(weights, distilled / "student.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        export.run(config, {"distill": distilled}, distilled)
    assert "'tiny' student with 4 classes" in str(caught.value)
    assert caught.value.hint


def test_export_is_reproducible(exported: Path, student: Any, tmp_path: Path) -> None:
    shutil.copy(exported / "student.onnx", tmp_path / "first.onnx")
    onnx_export.export_student(student, image_input(16), ["ant", "bee", "cat", "dog"], tmp_path / "second.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_multiply_accumulates_of_computed_shapes_are_counted():
    """Shape inference does not know the height behind a slice whose end is computed from the input."""
    values = {"two": np.int64([2]), "zero": np.int64([0]), "w": np.zeros((5, 3, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["nchw"], ["height"], start=2, end=3),
        helper.make_node("Cast", ["height"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["float"], ["root"]),
        helper.make_node("Cast", ["root"], ["end"], to=TensorProto.INT64),
        helper.make_node("Slice", ["nchw", "zero", "end", "two"], ["top"]),
        helper.make_node("Conv", ["top", "w"], ["conv"]),
        helper.make_node("MatMul", ["conv", "conv"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "slice",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 16, 4, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert count_macs(model) == 5 * 4 * 4 * 3 + 5 * 4 * 4 * 4

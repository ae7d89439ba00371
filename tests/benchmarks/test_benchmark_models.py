"""Models that cannot be used, accuracy of those that can, and the proof of integer kernels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from broken_models import KINDS, write_broken
from onnx import TensorProto, helper

from kdedge.benchmarks import accuracy
from kdedge.benchmarks.accuracy import (
    balanced_pct,
    macro_f1_pct,
    per_class_table,
    per_group_table,
    predict_logits,
    top1_pct,
)
from kdedge.benchmarks.interval import wilson_interval_pct
from kdedge.benchmarks.kernels import int8_proof
from kdedge.benchmarks.session import CUDA, Model, check_fits, open_model
from kdedge.errors import InputError, StageError
from kdedge.inputs import image_input


def test_a_good_model_tells_its_format(models: dict[str, Path], dataset: Any) -> None:
    model = open_model(models["fp32"], threads=2)
    assert (model.spec.size, model.classes, model.threads) == (16, 4, 2)
    assert model.class_names == dataset.class_names
    assert model.load_ms > 0
    assert model.session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    check_fits(model, dataset.class_names, image_input(16))


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_truncated_files(models: dict[str, Path], tmp_path: Path, kept: float) -> None:
    whole = models["int8"].read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"cut\.onnx .* is not a usable ONNX model") as caught:
        open_model(path)
    assert "kdedge export" in caught.value.hint


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is not a model\n" * 20)
    with pytest.raises(InputError, match="is not a usable ONNX model"):
        open_model(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_fails_when_it_runs(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = open_model(write_broken(tmp_path / "broken.onnx", kind))
    with pytest.raises(StageError, match=r"broken\.onnx (loads but does not run|returns logits)"):
        model.logits(np.zeros((2, 16, 16, 3), np.uint8))
    assert capfd.readouterr() == ("", "")  # onnxruntime has its own log


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model at"):
        open_model(tmp_path / "missing.onnx")


def test_a_folder_instead_of_a_model_names_its_largest_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        open_model(tmp_path)
    for name, size in (("student.int8.onnx", 10), ("student.onnx", 40)):
        (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(InputError, match="is a folder") as caught:
        open_model(tmp_path)
    assert caught.value.hint == f"give a file in it, such as {tmp_path / 'student.onnx'}"


def test_wrong_input_name(fp32_writer: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes image uint8 .* expected pixels uint8 \[N, S, S, 3\]"):
        open_model(fp32_writer(tmp_path / "named.onnx", input_name="image"))


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        (["n", 16, 16, 3], TensorProto.FLOAT, "takes pixels float"),
        (["n", 3, 16, 16], TensorProto.UINT8, "takes pixels uint8"),
        (["n", 16, 8, 3], TensorProto.UINT8, "takes pixels uint8"),
        ([1, 16, 16, 3], TensorProto.UINT8, "fixed batch 1"),
    ],
)
def test_wrong_signatures(tmp_path: Path, shape: list[Any], kind: int, message: str) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["cast"], ["mean"], keepdims=1),
            helper.make_node("Flatten", ["mean"], ["logits"]),
        ],
        "other",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1])],
    )
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(InputError, match=message):
        open_model(path)


def test_models_of_another_data_set(models: dict[str, Path], dataset: Any) -> None:
    model = open_model(models["fp32"])
    with pytest.raises(InputError, match="has 4 classes, the data set has 10"):
        check_fits(model, [str(index) for index in range(10)], image_input(16))
    with pytest.raises(InputError, match="calls class 0 'cat', the data set 'plane'"):
        check_fits(model, ("plane", *dataset.class_names[1:]), image_input(16))
    with pytest.raises(InputError, match="takes images of 16x16 pixels, the data set has images of 32x32"):
        check_fits(model, dataset.class_names, image_input(32))


def test_class_names_are_optional_but_must_be_readable(fp32_writer: Callable[..., Path], tmp_path: Path) -> None:
    assert open_model(fp32_writer(tmp_path / "bare.onnx", classes=None)).class_names is None
    with pytest.raises(InputError, match=r"kdedge\.classes"):
        open_model(fp32_writer(tmp_path / "few.onnx", classes=("one", "two")))


def test_missing_provider(models: dict[str, Path]) -> None:
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(StageError, match="has no CUDAExecutionProvider"):
        open_model(models["fp32"], provider=CUDA)


def test_large_images_go_in_smaller_batches(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = replace(open_model(models["int8"]), spec=image_input(224)), []
    monkeypatch.setattr(Model, "logits", lambda self, batch: sizes.append(len(batch)) or np.zeros((len(batch), 4)))
    predict_logits(model, np.zeros((12, 224, 224, 3), np.uint8))
    assert sizes == [5, 5, 2]


def test_batches_do_not_change_the_answers(
    models: dict[str, Path], dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(models["int8"])
    images = dataset.test().images[:50]
    whole = predict_logits(model, images)
    monkeypatch.setattr(accuracy, "inputs_at_once", lambda *_: 7)
    ragged = predict_logits(model, images)
    assert whole.shape == (50, 4)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, ragged)


def test_accuracy_by_class() -> None:
    labels = np.array([0, 0, 0, 1])
    fp32_answers, int8_answers = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    fp32 = fp32_answers == labels
    rows = per_class_table(labels, fp32_answers, int8_answers, ("a", "b", "c"))
    assert rows[0] == {
        "class": "a",
        "n": 3,
        "fp32_top1_pct": 66.6667,
        "int8_top1_pct": 66.6667,
        "fp32_ci95_pct": [20.766, 93.8508],
        "int8_ci95_pct": [20.766, 93.8508],
        "fp32_precision_pct": 100.0,
        "int8_precision_pct": 100.0,
        "fp32_only_right": 1,
        "int8_only_right": 1,
    }
    assert rows[1]["int8_precision_pct"] == 50.0
    assert [rows[2][key] for key in ("n", "fp32_top1_pct", "fp32_precision_pct")] == [0, None, None]
    assert macro_f1_pct(labels, fp32_answers) == pytest.approx((100 * 4 / 5 + 100 * 2 / 3) / 2, abs=1e-4)
    assert macro_f1_pct(labels, np.full(4, 2)) == 0
    assert top1_pct(fp32) == 75.0
    assert balanced_pct(fp32, labels) == pytest.approx((200 / 3 + 100) / 2, abs=1e-4)
    # Wilson (1927), 3 of 4: the value that R's binom.confint gives.
    assert wilson_interval_pct(3, 4) == pytest.approx([30.06, 95.44], abs=0.01)


def test_groups_of_several_images_have_a_row_the_worst_first() -> None:
    groups = np.array(["a", "b", "b", "", "", "c", "a", "a", "b"])
    fp32 = np.array([1, 0, 1, 1, 0, 0, 1, 1, 1], bool)
    int8 = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0], bool)
    rows = per_group_table(groups, fp32, int8)
    assert [row["group"] for row in rows] == ["b", "a"]
    assert rows[0] == {
        "group": "b", "n": 3, "fp32_top1_pct": 66.6667, "int8_top1_pct": 33.3333, "fp32_only_right": 2,
        "int8_only_right": 1,
    }  # fmt: skip
    assert per_group_table(None, fp32, int8) == []
    assert per_group_table(np.full(9, ""), fp32, int8) == []


def test_proof_of_an_integer_model(models: dict[str, Path]) -> None:
    proof = int8_proof(models["int8"])
    assert (proof["integer_convs"], proof["float_convs"]) == (2, 0)
    assert (proof["integer_gemms"], proof["float_gemms"]) == (1, 0)
    assert proof["float_operators"] == []
    assert proof["ops_by_type"]["QLinearConv"] == 2
    assert set(proof["providers_by_node"].values()) == {"CPUExecutionProvider"}
    assert len(proof["providers_by_node"]) == sum(proof["ops_by_type"].values())


def test_proof_finds_a_float_convolution_by_name(models: dict[str, Path]) -> None:
    proof = int8_proof(models["mixed"])
    assert (proof["integer_convs"], proof["float_convs"]) == (1, 1)
    assert "conv2" in proof["float_operators"]
    assert "conv1" not in proof["float_operators"]
    assert (proof["float_on_purpose"], proof["float_by_accident"]) == ([], ["conv2"])


def test_proof_knows_what_is_in_float_on_purpose(models: dict[str, Path]) -> None:
    proof = int8_proof(models["chosen"])
    assert proof["float_convs"] == 1
    assert (proof["float_on_purpose"], proof["float_by_accident"]) == (["conv2"], [])
    other = int8_proof(models["misnamed"])
    assert (other["float_on_purpose"], other["float_by_accident"]) == ([], ["conv2"])


def test_any_layer_of_a_model_that_kdedge_did_not_train_may_be_in_float(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(models["mixed"])
    model.metadata_props.add(key="kdedge.adopted", value="net.onnx")
    onnx.save(model, tmp_path / "net.onnx")
    proof = int8_proof(tmp_path / "net.onnx")
    assert (proof["float_convs"], proof["float_by_accident"]) == (1, [])


def test_proof_of_a_float_model(models: dict[str, Path]) -> None:
    proof = int8_proof(models["fp32"])
    assert (proof["integer_convs"], proof["float_convs"]) == (0, 2)
    assert (proof["integer_gemms"], proof["float_gemms"]) == (0, 1)
    assert {"conv1", "conv2", "head"} <= set(proof["float_operators"])

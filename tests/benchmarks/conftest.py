"""A tiny network in kdedge's format, as FP32 and as INT8 QDQ, and a data set that counts how often it is read."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from measured import FACTS, OPTIONS, TestImages, benchmark
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from kdedge.benchmarks.session import open_model
from kdedge.dataset import Split
from kdedge.inputs import InputSpec, image_input

SIZE = 16
CLASSES = ("cat", "dog | wolf", "<b>frog</b>", "ship")


def write_fp32(path: Path, *, input_name: str = "pixels", classes: tuple[str, ...] | None = CLASSES) -> Path:
    """Write a seeded two-convolution network: pixels uint8 [N, 16, 16, 3] to logits [N, 4]."""
    rng = np.random.default_rng(0)

    def weight(name: str, values: object) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, np.float32), name)

    node = helper.make_node
    nodes = [
        node("Cast", [input_name], ["cast"], to=TensorProto.FLOAT),
        node("Mul", ["cast", "scale"], ["unit"]),
        node("Transpose", ["unit"], ["x"], perm=[0, 3, 1, 2]),
        node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c2"], ["r2"]),
        node("AveragePool", ["r2"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "w3", "b3"], ["logits"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [
            weight("scale", 1 / 255),
            weight("w1", rng.normal(size=(16, 3, 3, 3)) * 0.3),
            weight("b1", np.zeros(16)),
            weight("w2", rng.normal(size=(32, 16, 3, 3)) * 0.1),
            weight("b2", np.zeros(32)),
            weight("w3", rng.normal(size=(4, 32))),
            weight("b3", [2.05, 1.61, -3.65, 0.89]),  # so that no class always wins
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if classes is not None:
        helper.set_model_props(model, {"kdedge.classes": json.dumps(classes)})
    onnx.save(model, path)
    return path


def write_int8(fp32: Path, path: Path, keep_float: tuple[str, ...] = ()) -> Path:
    """Quantize a model of `write_fp32` statically, leaving some nodes in float."""
    batches = iter([{"pixels": random_images(8, seed)} for seed in range(3)])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(batches, None)

    quantize_static(
        fp32,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        nodes_to_exclude=list(keep_float),
    )
    return path


def name_float_layers(source: Path, path: Path, *layers: str) -> Path:
    """Write a copy whose metadata says that these layers are in float on purpose."""
    model = onnx.load(source)
    known = {item.key: item.value for item in model.metadata_props}
    helper.set_model_props(model, {**known, "kdedge.float_layers": json.dumps(layers)})
    onnx.save(model, path)
    return path


def random_images(count: int, seed: int) -> NDArray[np.uint8]:
    """Return flat random colours with noise, so that the network does not give the same answer to all."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 200, (count, 1, 1, 3))
    return (colours + rng.integers(0, 56, (count, SIZE, SIZE, 3))).astype(np.uint8)


@dataclass
class CountingDataset:
    """Test images whose labels are the FP32 answers, one in ten changed."""

    split: Split
    class_names: tuple[str, ...] = CLASSES
    spec: InputSpec = field(default_factory=lambda: image_input(SIZE))
    name: str = "made-up"
    reads: list[str] = field(default_factory=list)

    def train(self) -> Split:
        raise AssertionError("the benchmark must not read training images")

    def test(self) -> Split:
        self.reads.append("test")
        return self.split

    def train_sha256(self) -> str:
        return "0" * 64

    def test_sha256(self) -> str:
        return "1" * 64


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    fp32 = write_fp32(root / "student.onnx")
    mixed = write_int8(fp32, root / "mixed.onnx", keep_float=("conv2",))
    return {
        "fp32": fp32,
        "int8": write_int8(fp32, root / "student.int8.onnx"),
        "mixed": mixed,
        "chosen": name_float_layers(mixed, root / "chosen.onnx", "conv2"),
        "misnamed": name_float_layers(mixed, root / "misnamed.onnx", "head"),
    }


@pytest.fixture(scope="session")
def labelled(models: dict[str, Path]) -> Split:
    images = random_images(300, seed=7)
    labels = open_model(models["fp32"]).logits(images).argmax(1).astype(np.int64)
    labels[::10] = (labels[::10] + 1) % len(CLASSES)
    return Split(images, labels)


@pytest.fixture
def dataset(labelled: Split) -> CountingDataset:
    return CountingDataset(labelled)


@pytest.fixture(scope="session")
def fp32_writer() -> Callable[..., Path]:
    return write_fp32


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path], labelled: Any
) -> tuple[dict[str, Any], Path]:
    """Run the stage once, with everything that it can be given."""
    out = tmp_path_factory.mktemp("benchmark")
    dataset = TestImages(labelled.images[:120], labelled.labels[:120])
    seen = []

    def torch_top1(split: Any) -> dict[str, float | None]:
        seen.append(split)
        return {"teacher_test_top1_pct": 77.5, "torch_fp32_top1_pct": 25.0}

    report = benchmark(
        OPTIONS, models["fp32"], models["int8"], dataset, run_facts=FACTS, torch_top1=torch_top1, out_dir=out
    )
    assert dataset.reads == 1
    assert [len(split.labels) for split in seen] == [120]
    return report, out

"""ONNX classifiers that kdedge did not train, for tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdedge.benchmarks.input_adapter import PREPROCESSING, open_classifier
from kdedge.export.adopt import adopt_model
from kdedge.export.graph import read_model

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
CLASSES = ("blue", "green", "red")


def colour_net(
    path,
    *,
    batch=None,
    layout="NCHW",
    kind=FLOAT,
    opset=18,
    activation="HardSwish",
    last="Gemm",
    norm=False,
    ir=0,
    **save,
):
    """Write a classifier whose largest logit is that of the strongest colour, with padding, branches and a mean."""
    rng = np.random.default_rng(0)
    first = np.zeros((6, 3, 3, 3), np.float32)
    first[range(6), [0, 1, 2, 0, 1, 2], 1, 1] = 1
    values = {
        "w1": first + rng.normal(0, 0.01, first.shape).astype(np.float32),
        "b1": np.full(6, 0.2, np.float32),
        "w2": np.eye(6, dtype=np.float32)[:, :, None, None],
        "w3": 10 * np.array([[0, 0, 1] * 2, [0, 1, 0] * 2, [1, 0, 0] * 2], np.float32),
        "b3": np.zeros(3, np.float32),
        "shape": np.array([batch or -1, 6], np.int64),
    }
    nodes = []
    tensor = "image"

    def add(kind_, inputs, out, **attributes):
        nodes.append(helper.make_node(kind_, inputs, [out], **attributes))  # without names
        return out

    if kind == UINT8:
        tensor = add("Cast", [tensor], "cast", to=FLOAT)
        values["by"] = np.float32(1 / 255)
        tensor = add("Mul", [tensor, "by"], "scaled")
    if layout == "NHWC":
        tensor = add("Transpose", [tensor], "nchw", perm=[0, 3, 1, 2])
    tensor = add("Conv", [tensor, "w1", "b1"], "conv1", pads=[1] * 4)
    tensor = add(activation, [tensor], "act1")
    if norm:  # not behind a convolution
        values |= {"one": np.ones(6, np.float32), "zero": np.zeros(6, np.float32)}
        tensor = add("BatchNormalization", [tensor, "one", "zero", "zero", "one"], "norm")
    gate = add("Sigmoid", [add("Conv", [add("GlobalAveragePool", [tensor], "pool"), "w2"], "squeeze")], "gate")
    tensor = add("Mul", [tensor, gate], "scaled_by_gate")
    values["axes"] = np.array([2, 3], np.int64)
    axes = {"axes": [2, 3]} if opset < 18 else {}
    if batch == 4:  # a slice whose shape no inference knows, as of shuffled channels
        values |= {"start": np.int64([0]), "half": np.int64([3]), "two": np.int64([2]), "channel": np.int64([1])}
        tensor = add("Slice", [tensor, "start", add("Mul", ["half", "two"], "end"), "channel"], "slice")
        values["groups"] = np.int64([4, 2, 3, 16, 16])
        tensor = add("Reshape", [tensor, "groups"], "grouped")
        values["most"] = np.int64(64)
        sides = add("Clip", [add("Shape", ["scaled_by_gate"], "shape_of"), "", "most"], "sides")
        tensor = add("Relu", [add("Relu", [add("Reshape", [tensor, sides], "ungrouped")], "relu1")], "relu2")
    tensor = add("ReduceMean", [tensor] if axes else [tensor, "axes"], "mean", keepdims=1, **axes)
    tensor = add("Reshape", [tensor, "shape"], "flat")
    if last == "Gemm":
        add("Gemm", [tensor, "w3", "b3"], "scores", transB=1)
    else:
        add("Softmax", [add("Gemm", [tensor, "w3", "b3"], "sums", transB=1)], "scores", axis=1)
    sides = [3, 16, 16] if layout == "NCHW" else [16, 16, 3]
    graph = helper.make_graph(
        nodes, "colours",
        [helper.make_tensor_value_info("image", kind, [batch or "N", *sides])],
        [helper.make_tensor_value_info("scores", FLOAT, [batch or "N", 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    ir_version = ir or (7 if opset < 15 else 10)
    if ir == 3:  # lists the weights among the inputs
        values_of = {name: np.asarray(value) for name, value in values.items()}
        kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in values_of.items()}
        graph.input.extend(
            helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in values_of.items()
        )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path, **save)
    return path


def adopted(path, target, name="torchvision", **options):
    metrics = adopt_model(open_classifier(path), PREPROCESSING[name], CLASSES, target, resize_mode="squeeze", **options)
    assert metrics["max_abs_diff"] < 1e-4
    assert metrics["macs"] == 6 * 27 * 16**2 + 6 * 6 + 6 * 3 + (name == "torchvision") * 3 * 16**2
    return read_model(target)

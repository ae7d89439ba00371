"""Reads a quantized student as the integer layers that onnxruntime runs.

    network = read_network(Path("student.int8.onnx"))

When a session starts, onnxruntime fuses DequantizeLinear → Conv → QuantizeLinear into QLinearConv. This module reads
the optimised graph, because `engine.c` must reproduce the results of these nodes. It computes their float32 scales in
the order in which onnxruntime does.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from kdedge.benchmarks.session import import_onnxruntime
from kdedge.errors import InputError
from kdedge.export.graph import read_model, read_spec
from kdedge.export.lookup import arrays, attributes
from kdedge.export.quantize.proof import optimise
from kdedge.files import parse_json

__all__ = ["Layer", "Network", "read_network"]

_CHAIN = "expected convolutions, each with an optional max-pool, the mean over the last map and a matrix product"
_SCALES = (2.0**-80, 2.0**20)  # engine.c has no subnormal numbers and no infinity


@dataclass(frozen=True)
class Layer:
    """A convolution with an optional max-pool, or the final matrix product as a 1x1 convolution.

    Attributes:
        name: Name of the node.
        shape: Height, width and channels of the input.
        weights: ``[out channels, kernel height, kernel width, in channels] int8``, without zero point.
        bias: ``[out channels] int32``.
        scales: Factors from an accumulator to an output, ``[out channels] float32``.
        zero_points: Of input and output.
        strides: Vertical and horizontal.
        pads: Top, left, bottom and right.
        pool: Side and stride of the max-pool; 1 for none.
    """

    name: str
    shape: tuple[int, int, int]
    weights: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    scales: npt.NDArray[np.float32]
    zero_points: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pool: int = 1

    @property
    def output(self) -> tuple[int, int, int]:
        """Height, width and channels of the output."""
        top, left, bottom, right = self.pads
        _, kernel_height, kernel_width, _ = self.weights.shape
        height = (self.shape[0] + top + bottom - kernel_height) // self.strides[0] + 1
        width = (self.shape[1] + left + right - kernel_width) // self.strides[1] + 1
        return height // self.pool, width // self.pool, len(self.weights)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image, with those in the padding."""
        height, width, _ = self.output
        return height * width * self.pool**2 * self.weights.size


@dataclass(frozen=True)
class Network:
    """The layers of a student.

    Attributes:
        convs: In order; the first takes the pixels.
        mean_scale: Factor from the sum over the last map to the mean, float32.
        mean_zero_points: Of input and output of the mean.
        classifier: Its scales lead to the float logits; its output zero point is 0.
        labels: The class names.
    """

    convs: tuple[Layer, ...]
    mean_scale: np.float32
    mean_zero_points: tuple[int, int]
    classifier: Layer
    labels: tuple[str, ...]


def read_network(path: Path) -> Network:
    """Read a quantized student.

    Raises:
        InputError: The file is damaged or takes a signal, or the C code does not support a node, which the message
            names.
    """
    model = read_model(path)
    if (spec := read_spec(model)) and spec.kind != "image":
        raise InputError(f"{path} takes {spec.words}; the C code is for images", "run the model with onnxruntime")
    graph = optimise(path.read_bytes(), import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    constants = {name: value.squeeze() if value.ndim == 1 else value for name, value in arrays(graph).items()}
    pixels = graph.input[0]
    tensor = pixels.name
    shape: Any = tuple(axis.dim_value for axis in pixels.type.tensor_type.shape.dim)[1:]
    convs: list[Layer] = []
    mean = classifier = None
    for node in graph.node:
        _require(node, list(node.input[:1]) == [tensor] and classifier is None, f"the graph has a branch; {_CHAIN}")
        tensor = node.output[0]
        values = _Node(node, [constants.get(name) for name in node.input], attributes(node), shape)
        kind = node.op_type
        if kind == "Transpose" and not convs and values.options.get("perm") == [0, 3, 1, 2]:
            continue  # the C code keeps images and maps in NHWC
        if kind in ("Reshape", "Flatten") and mean:
            continue
        if kind == "QLinearConv" and not mean:
            convs.append(_conv(values))
        elif kind == "MaxPool" and convs and convs[-1].pool == 1 and not mean:
            convs[-1] = replace(convs[-1], pool=_pool(values))
        elif kind in ("QLinearAveragePool", "QLinearGlobalAveragePool") and convs and not mean:
            mean = _mean(values)
            shape = (1, 1, shape[2])
            continue
        elif kind == "QGemm" and mean:
            classifier = _classifier(values)
            continue
        else:
            _require(node, False, _CHAIN)
        shape = convs[-1].output
    if classifier is None or mean is None:
        raise InputError(f"{path} has no C code: its last node is {graph.node[-1].op_type}; {_CHAIN}")
    labels = next(item.value for item in model.metadata_props if item.key == "kdedge.classes")
    return Network(tuple(convs), *mean, classifier, tuple(map(str, parse_json(labels))))


@dataclass(frozen=True)
class _Node:
    """A node with the values of its inputs (None: not constant), its options, and the shape of its input."""

    node: onnx.NodeProto
    inputs: list[Any]
    options: dict[str, Any]
    shape: tuple[int, int, int]

    def require(self, condition: Any, found: str) -> None:
        _require(self.node, condition, found)

    def constants(self, count: int) -> list[Any]:
        """Return the inputs after the first; an absent last one is None."""
        names = list(self.node.input)
        missing = [name for name, value in zip(names[1:], self.inputs[1:], strict=True) if name and value is None]
        self.require(not missing, f"the input {', '.join(missing)} is not constant")
        self.require(len(names) <= count + 1, f"it has {len(names)} inputs; expected at most {count + 1}")
        return self.inputs[1:] + [None] * (count + 1 - len(names))

    def layer(self, weights: Any, weight_zero: Any, bias: Any, scales: Any, zero_points: Any, **more: Any) -> Layer:
        """Return a layer from weights ``[out, height, width, in]`` after checks of its numbers."""
        self.check_activations(*zero_points)
        zero_in, zero_out = map(int, zero_points)
        wide = weights.astype(np.int64) - weight_zero.astype(np.int64).reshape(-1, *[1] * (weights.ndim - 1))
        self.require(wide.min() >= -128 and wide.max() <= 127, "weights minus their zero point exceed int8")
        bias = np.zeros(len(wide), np.int32) if bias is None else np.atleast_1d(bias)
        largest = np.abs(wide).sum((1, 2, 3)) * max(zero_in, 255 - zero_in) + np.abs(bias.astype(np.int64))
        self.require(largest.max() < 2**31, "sums can exceed 32 bits")
        self.check_scales(scales)
        return Layer(
            self.node.name or self.node.output[0], self.shape, wide.astype(np.int8), bias,
            np.broadcast_to(scales, len(wide)), (zero_in, zero_out), **more,
        )  # fmt: skip

    def check_activations(self, *zero_points: Any) -> None:
        for value in zero_points:
            self.require(value.dtype == np.uint8, f"{value.dtype} activations; expected uint8")

    def check_scales(self, scales: Any) -> None:
        low, high = _SCALES
        valid = scales.dtype == np.float32 and np.all((low < scales) & (scales < high))
        self.require(
            valid,
            f"scales {scales.min():g} to {scales.max():g} {scales.dtype}; expected float32 in {low:g} to {high:g}",
        )


def _conv(values: _Node) -> Layer:
    in_scale, in_zero, weights, weight_scales, weight_zero, out_scale, out_zero, bias = values.constants(8)
    options = values.options
    values.require(weights.ndim == 4, f"{weights.ndim - 2} dimensions; expected 2")
    values.require(options.get("group", 1) == 1, f"{options.get('group')} groups; expected 1")
    values.require(set(options.get("dilations", [1])) == {1}, f"dilations {options.get('dilations')}; expected 1")
    values.require(options.get("auto_pad", b"NOTSET") == b"NOTSET", "auto_pad; expected pads")
    return values.layer(
        weights.transpose(0, 2, 3, 1), weight_zero, bias, in_scale * weight_scales / out_scale, (in_zero, out_zero),
        strides=tuple(options.get("strides", (1, 1))), pads=tuple(options.get("pads", (0, 0, 0, 0))),
    )  # fmt: skip


def _pool(values: _Node) -> int:
    """Return the side of a max-pool that can be computed together with the convolution before it."""
    options = values.options
    side, *others = options["kernel_shape"]
    plain = (
        {*others, *options.get("strides", (1, 1))} == {side}
        and not any(options.get("pads", ()))
        and not options.get("ceil_mode", 0)
        and options.get("auto_pad", b"NOTSET") == b"NOTSET"
        and set(options.get("dilations", [1])) == {1}
    )
    values.require(plain, "the windows overlap or are padded; expected adjacent square windows")
    return int(side)


def _mean(values: _Node) -> tuple[np.float32, tuple[int, int]]:
    """Return the scale and the zero points of a mean over the whole map."""
    in_scale, in_zero, out_scale, out_zero = values.constants(4)
    values.check_activations(in_zero, out_zero)
    kernel, whole = values.options.get("kernel_shape"), list(values.shape[:2])
    covers = kernel in (None, whole) and not any(values.options.get("pads", ()))
    values.require(covers, f"kernel {kernel}; expected the whole map {whole}")
    scale = in_scale / (out_scale * np.float32(np.prod(whole)))
    values.check_scales(scale)
    return scale, (int(in_zero), int(out_zero))


def _classifier(values: _Node) -> Layer:
    values.require(len(values.inputs) <= 7, "its output is quantized; expected float logits")
    in_scale, in_zero, weights, weight_scales, weight_zero, bias = values.constants(6)
    values.require(not values.options.get("transA", 0), "its input is transposed")
    matrix = weights if values.options.get("transB", 0) else weights.T
    scales = np.float32(values.options.get("alpha", 1.0)) * in_scale * weight_scales
    return values.layer(matrix[:, None, None], weight_zero, bias, scales, (in_zero, np.uint8(0)))


def _require(node: onnx.NodeProto, condition: Any, found: str) -> None:
    """Refuse a node.

    Raises:
        InputError: The condition is false.
    """
    if not condition:
        raise InputError(
            f"the C code does not support the node {node.name or node.output[0]} ({node.op_type}): {found}",
            "run the model with onnxruntime, or train a student of five convolutions (--student lite)",
        )

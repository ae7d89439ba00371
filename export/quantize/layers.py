"""Reads and writes the weights of a core, layer by layer, for the repair steps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from kdedge.export import lookup

__all__ = ["Layer", "Weights", "pads_of", "quantized_layer", "set_quantized_bias", "set_quantized_weight"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A two-dimensional convolution or a product with one constant matrix.

    Attributes:
        node: The node.
        attributes: Its attributes by name.
    """

    node: onnx.NodeProto
    attributes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the node."""
        return str(self.node.name)

    @property
    def output_axis(self) -> int:
        """The axis of the weights that runs over output channels."""
        if self.node.op_type == "Conv" or self.attributes.get("transB"):
            return 0
        return 1

    @property
    def channel_axis(self) -> int:
        """The axis of the output tensor that runs over channels."""
        return 1 if self.node.op_type == "Conv" else -1

    @property
    def depthwise(self) -> bool:
        """Whether every input channel has its own filters."""
        return int(self.attributes.get("group", 1)) > 1


class Weights:
    """The layers of a copy of a core, with readable and replaceable weights and biases.

    Args:
        core: The float core; not modified.
    """

    def __init__(self, core: onnx.ModelProto) -> None:
        self.core = onnx.ModelProto()
        self.core.CopyFrom(core)
        graph = self.core.graph
        self._constants = lookup.initializers(graph)
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.layers = [Layer(node, lookup.attributes(node)) for node in lookup.layers(graph)]

    def weight(self, layer: Layer) -> Array:
        """Return the weights: ``[out, in/group, kh, kw]`` for a Conv, else ``[out, in]`` or ``[in, out]``."""
        return np.array(numpy_helper.to_array(self._constants[layer.node.input[1]]), np.float32)

    def bias(self, layer: Layer) -> Array:
        """Return the bias ``[out]``; zeros if the layer has none."""
        if len(layer.node.input) > 2 and layer.node.input[2] in self._constants:
            return np.array(numpy_helper.to_array(self._constants[layer.node.input[2]]), np.float32)
        return np.zeros(self.weight(layer).shape[layer.output_axis], np.float32)

    def set_weight(self, layer: Layer, value: Array) -> None:
        """Replace the weights; the shape is that of `weight`."""
        self._set(layer, 1, value)

    def set_bias(self, layer: Layer, value: Array) -> None:
        """Replace or add the bias ``[out]``; a MatMul has no bias and is not changed."""
        if layer.node.op_type == "MatMul":
            return
        if len(layer.node.input) < 3:
            layer.node.input.append("")
        self._set(layer, 2, value)

    def _set(self, layer: Layer, index: int, value: Array) -> None:
        """Connect an input to a new constant: layers may share the old one."""
        name = f"{layer.name}.{'weight' if index == 1 else 'bias'}"
        if name not in self._constants:
            item = self.core.graph.initializer.add()
            self._constants[name] = item
        self._constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        layer.node.input[index] = name


def pads_of(attributes: Mapping[str, Any], sides: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Return the padding of a convolution or pool: before the map by axis, then after it by axis.

    Args:
        attributes: Of the node.
        sides: Height and width of the map.
        kernel: Height and width of the kernel.
    """
    mode = attributes.get("auto_pad", b"NOTSET")
    if not mode.startswith(b"SAME"):
        return list(attributes.get("pads", [0] * 2 * len(kernel)))
    steps = zip(sides, kernel, attributes.get("strides", [1] * len(kernel)), strict=True)
    # onnxruntime takes no dilations together with this mode.
    totals = [max((-(-side // stride) - 1) * stride + size - side, 0) for side, size, stride in steps]
    before = [total // 2 if mode == b"SAME_UPPER" else total - total // 2 for total in totals]
    return before + [total - first for total, first in zip(totals, before, strict=True)]


def quantized_layer(model: onnx.ModelProto, name: str) -> tuple[onnx.NodeProto, Array | None]:
    """Return a layer's node in a quantized model and the scales of its weights (None: it is in float).

    Args:
        model: The QDQ model.
        name: Name of the layer.

    Returns:
        The node; the weight scales, one for the tensor (``[]``) or one per output channel (``[out]``).
    """
    graph = model.graph
    node = next(node for node in graph.node if node.name == name)
    dequantize = lookup.producers(graph).get(node.input[1])
    if dequantize is None:
        return node, None
    return node, np.array(lookup.arrays(graph)[dequantize.input[1]], np.float32)


def set_quantized_weight(model: onnx.ModelProto, node: onnx.NodeProto, layer: Layer, integers: Array) -> None:
    """Replace the weights of a layer in a quantized model, in place.

    Args:
        model: The QDQ model.
        node: The layer's node in it, from `quantized_layer`.
        layer: The layer of the float core.
        integers: In the shape of the weights, in units of their scale; 0 is the weight zero.
    """
    constants, dequantize = lookup.initializers(model.graph), lookup.producers(model.graph)[node.input[1]]
    target, zero = constants[dequantize.input[0]], numpy_helper.to_array(constants[dequantize.input[2]])
    if zero.ndim:  # one per output channel
        zero = np.expand_dims(zero, [axis for axis in range(integers.ndim) if axis != layer.output_axis])
    values = (integers + zero).astype(zero.dtype)
    target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), target.name))


def set_quantized_bias(model: onnx.ModelProto, node: onnx.NodeProto, bias: Array) -> None:
    """Replace the bias of a layer in a quantized model, in place; a MatMul has no bias and is not changed.

    Args:
        model: The QDQ model.
        node: The layer's node in it, from `quantized_layer`.
        bias: ``[out]``, in the units of the layer's output.
    """
    if node.op_type == "MatMul":
        return
    constants = lookup.initializers(model.graph)
    dequantize = lookup.producers(model.graph).get(node.input[2])
    if dequantize is None:  # the layer is in float
        target, values = constants[node.input[2]], bias
    else:
        target, scale = constants[dequantize.input[0]], numpy_helper.to_array(constants[dequantize.input[1]])
        values = np.rint(bias / scale).astype(np.int32)
    target.CopyFrom(numpy_helper.from_array(values, target.name))

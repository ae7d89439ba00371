"""Cross-layer equalisation: the channels of a layer get weights of similar size, without data.

A ReLU commutes with a positive factor, so a channel may be divided by s in the layer that computes it and multiplied by
s in the layer that reads it. s = sqrt(r1 / r2) equalises r1 and r2, the largest absolute weights of the channel in the
two layers (M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019,
arXiv:1906.04721, eq. 11).
"""

from collections.abc import Iterator

import numpy as np
import onnx

from kdedge.export.quantize.layers import Layer, Weights

__all__ = ["equalise"]

_PASS_ON = {"Relu", "MaxPool", "AveragePool", "GlobalAveragePool"}
_FLATTEN = {"Flatten", "Reshape", "Squeeze"}
_ROUNDS = 30
_CONVERGED = 1e-3
_DEAD = 1e-5  # of the largest channel


def equalise(core: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent core with equalised channels.

    Two layers are a pair if one feeds only the other, through ReLUs and pools only; a clipped ReLU (ReLU6), a branch or
    a reshape to more than two axes ends a chain. The pairs are equalised in turn until no factor changes by more than
    0.1 %.
    """
    weights = Weights(core)
    pairs = list(_pairs(weights))
    for _ in range(_ROUNDS):
        change = max((_equalise_pair(weights, first, second) for first, second in pairs), default=0.0)
        if change < _CONVERGED:
            break
    return weights.core


def _pairs(weights: Weights) -> Iterator[tuple[Layer, Layer]]:
    """Yield the layers that feed each other directly."""
    graph = weights.core.graph
    inferred = onnx.shape_inference.infer_shapes(weights.core).graph.value_info
    flat = {value.name for value in inferred if len(value.type.tensor_type.shape.dim) == 2}
    readers = {name: node for node in graph.node for name in node.input[:1]}
    outputs = {value.name for value in graph.output}
    by_output = {layer.node.output[0]: layer for layer in weights.layers}
    for first in weights.layers:
        tensor = first.node.output[0]
        while weights.uses[tensor] == 1 and tensor not in outputs and tensor in readers:
            node = readers[tensor]
            second = by_output.get(node.output[0])
            if second is not None:
                same_axis = first.channel_axis == second.channel_axis or tensor in flat
                if same_axis and _channels_in(weights, second) == len(weights.bias(first)):
                    yield first, second
                break
            if node.op_type not in _PASS_ON and not (node.op_type in _FLATTEN and node.output[0] in flat):
                break
            tensor = node.output[0]


def _channels_in(weights: Weights, layer: Layer) -> int:
    shape = weights.weight(layer).shape
    if layer.depthwise:
        return shape[0] if shape[1] == 1 else -1
    return int(shape[1 - layer.output_axis])


def _equalise_pair(weights: Weights, first: Layer, second: Layer) -> float:
    """Equalise two layers; return the largest change of a factor, as |log s|."""
    out_axis = first.output_axis
    in_axis = 0 if second.depthwise else 1 - second.output_axis
    made, used = weights.weight(first), weights.weight(second)
    r1 = np.abs(np.moveaxis(made, out_axis, 0)).reshape(made.shape[out_axis], -1).max(1)
    r2 = np.abs(np.moveaxis(used, in_axis, 0)).reshape(used.shape[in_axis], -1).max(1)
    # Weight decay leaves channels with tiny weights and a larger bias: scaled to the size of the others, that bias
    # would take the whole range of the activations.
    alive = (r1 > _DEAD * r1.max()) & (r2 > _DEAD * r2.max())
    factor = np.ones_like(r1)
    factor[alive] = np.sqrt(r1[alive] / r2[alive])
    weights.set_weight(first, made / _along(factor, out_axis, made.ndim))
    weights.set_bias(first, weights.bias(first) / factor)
    weights.set_weight(second, used * _along(factor, in_axis, used.ndim))
    return float(np.abs(np.log(factor)).max())


def _along(factor: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Shape a vector so that it runs along one axis of an array."""
    return factor.reshape([-1 if index == axis else 1 for index in range(ndim)])

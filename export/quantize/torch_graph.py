"""A quantized ONNX graph as a trainable PyTorch module.

QuantizeLinear rounds and clips to its fixed range, DequantizeLinear scales back; rounding passes gradients unchanged
(straight-through estimator, Y. Bengio et al., arXiv:1308.3432; B. Jacob et al., arXiv:1712.05877, sec. 3). Weights are
kept in float and quantized in every step with the scale of the quantizer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdedge.errors import StageError
from kdedge.export import lookup
from kdedge.export.quantize.layers import Weights, pads_of, quantized_layer

__all__ = ["OPERATORS", "TorchGraph", "convolve"]


class TorchGraph(nn.Module):
    """Runs a quantized model whose weights are float parameters.

    Args:
        model: The deployed QDQ model.
        weights: The layers of the float core that it was built from; their weights become parameters.
        reduce_range: Whether weights have 7 bits.

    Raises:
        StageError: The graph has an operator without an implementation here.
    """

    def __init__(self, model: onnx.ModelProto, weights: Weights, *, reduce_range: bool) -> None:
        super().__init__()
        self._nodes, self._source = list(model.graph.node), str(model.graph.input[0].name)
        if unknown := {node.op_type for node in self._nodes} - OPERATORS.keys() - {"QuantizeLinear"}:
            raise StageError(
                f"the model cannot be trained in INT8: {', '.join(sorted(unknown))} is not implemented",
                "leave out --qat",
            )
        self._attributes = [lookup.attributes(node) for node in self._nodes]
        constants = lookup.arrays(model.graph)
        self._constants = {name: torch.from_numpy(np.array(array)) for name, array in constants.items()}
        self._largest = 64.0 if reduce_range else 127.0
        self.weight, self.bias = nn.ParameterDict(), nn.ParameterDict()
        self._per_channel: dict[str, int | None] = {}
        for layer in weights.layers:
            key = _key(layer.name)
            _, scale = quantized_layer(model, layer.name)
            self.weight[key] = nn.Parameter(torch.from_numpy(weights.weight(layer)))
            # A MatMul has no bias.
            has_bias = layer.node.op_type != "MatMul"
            self.bias[key] = nn.Parameter(torch.from_numpy(weights.bias(layer)), requires_grad=has_bias)
            if scale is not None:
                self._per_channel[key] = layer.output_axis if scale.ndim else None

    def forward(self, batch: Tensor) -> Tensor:
        """Map images or windows to logits ``[N, classes]``."""
        values: dict[str, Tensor] = {**self._constants, self._source: batch}
        for node, attributes in zip(self._nodes, self._attributes, strict=True):
            inputs = [values[name] if name else None for name in node.input]
            key = _key(node.name)
            if node.op_type == "QuantizeLinear":
                result = _quantize(values[node.input[0]], values[node.input[1]], values[node.input[2]])
            else:
                if key in self.weight:
                    inputs[1:] = [self._quantized_weight(key), self.bias[key]]
                result = OPERATORS[node.op_type](attributes, *inputs)
            values[node.output[0]] = result
        return values["logits"]

    def _quantized_weight(self, key: str) -> Tensor:
        """Round a layer's weights to multiples of the scale that the largest weight sets."""
        weight: Tensor = self.weight[key]
        if key not in self._per_channel:
            return weight
        axis = self._per_channel[key]
        others = [index for index in range(weight.ndim) if index != axis]
        largest = weight.detach().abs().amax(others, keepdim=True).clamp_min(1e-12)
        scale = largest / self._largest
        rounded: Tensor = _round(weight / scale) * scale
        return rounded


def convolve(attributes: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute an ONNX Conv along one to three axes."""
    ones = [1] * (x.ndim - 2)
    strides, dilations = list(attributes.get("strides", ones)), list(attributes.get("dilations", ones))
    x = _padded(attributes, x, weight.shape[2:], 0.0)
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
    result: Tensor = convolution(x, weight, bias, strides, 0, dilations, int(attributes.get("group", 1)))
    return result


def _key(name: str) -> str:
    """Return a parameter name, which must not have dots."""
    return name.replace(".", "/")


def _round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def _quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    limits = torch.iinfo(zero.dtype)
    return torch.clamp(_round(x / scale) + zero, limits.min, limits.max)


def _dequantize(attributes: Mapping[str, Any], q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = int(attributes.get("axis", 1)) if scale.ndim else 0
    shape = [-1 if index == axis else 1 for index in range(q.ndim)] if scale.ndim else []
    offset = 0 if zero is None else zero.reshape(shape).float()
    return (q.float() - offset) * scale.reshape(shape)


def _padded(attributes: Mapping[str, Any], x: Tensor, kernel: Sequence[int], fill: float) -> Tensor:
    """Return the padded input of a convolution or pool."""
    pads = pads_of(attributes, x.shape[2:], kernel)
    axes = reversed(list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)))  # the last axis first
    return functional.pad(x, [pad for both in axes for pad in both], value=fill) if any(pads) else x


def _window(attributes: Mapping[str, Any], x: Tensor, fill: float) -> dict[str, Any]:
    """Return the padded input, kernel, strides and rounding of a pool."""
    kernel = list(attributes["kernel_shape"])
    return {
        "input": _padded(attributes, x, kernel, fill),
        "kernel_size": kernel,
        "stride": list(attributes.get("strides", [1] * len(kernel))),
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
    }


def _max_pool(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    dilations = list(attributes.get("dilations", [1] * (x.ndim - 2)))
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.ndim - 3]
    result: Tensor = pool(**_window(attributes, x, -torch.inf), dilation=dilations)
    return result


def _average_pool(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.ndim - 3]
    pooled: Tensor = pool(**_window(attributes, x, 0.0))
    if attributes.get("count_include_pad", 0):
        return pooled
    share: Tensor = pool(**_window(attributes, torch.ones_like(x[:1, :1]), 0.0))
    return pooled / share


def _gemm(attributes: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return x @ (weight.T if attributes.get("transB") else weight) + bias


def _reshape(attributes: Mapping[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape.tolist())]
    return x.reshape(sizes)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "DequantizeLinear": _dequantize,
    "Conv": convolve,
    "Gemm": _gemm,
    "MatMul": lambda attributes, x, weight, bias=0.0: x @ weight + bias,
    "Relu": lambda attributes, x: functional.relu(x),
    "Clip": lambda attributes, x, low=None, high=None: torch.clamp(x, low, high),
    "Add": lambda attributes, x, y: x + y,
    "Sub": lambda attributes, x, y: x - y,
    "Mul": lambda attributes, x, y: x * y,
    "Unsqueeze": lambda attributes, x, axes: x.unsqueeze(int(axes.item())),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda attributes, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "Concat": lambda attributes, *parts: torch.cat(parts, int(attributes["axis"])),
    "Flatten": lambda attributes, x: x.flatten(int(attributes.get("axis", 1))),
    "Reshape": _reshape,
    "Squeeze": lambda attributes, x, axes: x.squeeze(tuple(axes.tolist())),
    "Transpose": lambda attributes, x: x.permute(*attributes["perm"]),
}

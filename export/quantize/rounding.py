"""Bias correction and adaptive rounding: repairs of a quantized model with calibration images.

Both compare each layer, in order, with the float core. The input of a layer comes from the already repaired quantized
layers before it. Both return a quantizer whose core has the repaired values; the ranges stay.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from kdedge.benchmarks.session import batch_size
from kdedge.export import lookup
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.layers import Layer, Weights, quantized_layer, set_quantized_bias
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.progress import track

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BATCH", "STEPS", "correct_biases", "round_adaptively"]

IMAGES = 256
STEPS = 400
BATCH = 32
_LEARNING_RATE = 1e-2
_REGULARISER = 0.01
_WARM_UP = 0.2
_MOST_VALUES = 2**25  # of one layer's inputs, 128 MiB


def correct_biases(quantizer: Quantizer, candidate: Candidate, float_layers: Sequence[str] = ()) -> Quantizer:
    """Subtract the mean error of every output channel from its bias.

    Source: Nagel et al., ICCV 2019, arXiv:1906.04721, sec. 4.2, with the mean measured on calibration images.
    """
    images = quantizer.images[:IMAGES]
    weights = Weights(quantizer.core)
    for layer in weights.layers:
        weights.set_bias(layer, weights.bias(layer))  # adds zeros to a layer without a bias
    model = onnx.load_model_from_string(quantizer.repaired(weights.core).build(candidate, exclude=float_layers))
    aims = _channel_means(quantizer.original, {layer.node.output[0]: layer for layer in weights.layers}, images)
    with track("quantize: bias correction", len(weights.layers)) as progress:
        for layer in weights.layers:
            node, _ = quantized_layer(model, layer.name)
            [mean] = _channel_means(model, {node.output[0]: layer}, images).values()
            bias = weights.bias(layer) - (mean - aims[layer.node.output[0]]).astype(np.float32)
            weights.set_bias(layer, bias)
            set_quantized_bias(model, node, bias)  # the next layers read the corrected output
            progress.advance(note=layer.name)
    return quantizer.repaired(weights.core)


def _channel_means(
    model: onnx.ModelProto, tensors: Mapping[str, Layer], images: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the mean of every channel of the output tensors of layers over the images, each ``[channels]``."""
    run, batch = tensor_runner(model, list(tensors)), batch_size(images.shape[1])
    totals: dict[str, npt.NDArray[np.float64]] = {}
    counts = dict.fromkeys(tensors, 0)
    for start in range(0, len(images), batch):
        for (name, layer), values in zip(tensors.items(), run(images[start : start + batch]), strict=True):
            channels = np.moveaxis(values, layer.channel_axis, 0).reshape(values.shape[layer.channel_axis], -1)
            totals[name] = totals.get(name, 0.0) + channels.sum(1, dtype=np.float64)
            counts[name] += channels.shape[1]
    return {name: total / counts[name] for name, total in totals.items()}


def round_adaptively(quantizer: Quantizer, candidate: Candidate) -> Quantizer:
    """Round every weight up or down so that the outputs of the layers change least (AdaRound).

    Source: M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020,
    arXiv:2004.10568: eq. 21 (asymmetric, with the ReLU or ReLU6), the rectified sigmoid of eq. 23 and the
    regulariser of eq. 24.
    """
    images = quantizer.images[:IMAGES]
    with track("quantize: adaptive rounding", len(quantizer.layers)) as progress:
        for name in quantizer.layers:
            quantizer = _round_layer(quantizer, candidate, name, images)
            progress.advance(note=name)
    return quantizer


def _round_layer(quantizer: Quantizer, candidate: Candidate, name: str, images: npt.NDArray[np.uint8]) -> Quantizer:
    """Return a quantizer with the rounded weights of one layer."""
    weights = Weights(quantizer.core)
    layer = next(layer for layer in weights.layers if layer.name == name)
    model = onnx.load_model_from_string(quantizer.build(candidate))
    node, scale = quantized_layer(model, name)
    if scale is None:
        return quantizer
    inputs = _collect(model, node.input[0], images)
    targets = _collect(quantizer.original, layer.node.output[0], images[: len(inputs)])
    # Either may have the first images only, see `_collect`.
    count = min(len(inputs), len(targets))
    limits = _activation_limits(quantizer.core, layer)
    integers = _optimise(layer, weights, scale, inputs[:count], targets[:count], limits=limits)
    weights.set_weight(layer, integers * _spread(scale, layer, integers.ndim))
    return quantizer.repaired(weights.core)


def _collect(model: onnx.ModelProto, tensor: str, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return a tensor for the images, or for the first images only if it is large."""
    run, batch = tensor_runner(model, [tensor]), batch_size(images.shape[1])
    parts: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(images), batch):
        parts.append(run(images[start : start + batch])[0])
        if sum(part.size for part in parts) > _MOST_VALUES:
            break
    return np.concatenate(parts)


def _activation_limits(core: onnx.ModelProto, layer: Layer) -> tuple[float, float]:
    """Return the limits of the activation behind a layer, infinite without one."""
    readers = lookup.readers(core.graph, layer.node.output[0])
    if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip"):
        return -np.inf, np.inf
    if readers[0].op_type == "Relu":
        return 0.0, np.inf
    constants = {name: float(array) for name, array in lookup.arrays(core.graph).items() if not array.ndim}
    low, high = ([*readers[0].input, "", ""])[1:3]
    return constants.get(low, -np.inf), constants.get(high, np.inf)


def _spread(scale: npt.NDArray[np.float32], layer: Layer, ndim: int) -> npt.NDArray[np.float32]:
    """Shape one scale per output channel so that it runs along that axis of the weights."""
    return scale if scale.ndim == 0 else scale.reshape([-1 if axis == layer.output_axis else 1 for axis in range(ndim)])


def _optimise(
    layer: Layer,
    weights: Weights,
    scale: npt.NDArray[np.float32],
    inputs: npt.NDArray[np.float32],
    targets: npt.NDArray[np.float32],
    *,
    limits: tuple[float, float],
) -> npt.NDArray[np.float32]:
    """Return the integer weights of a layer, as float32."""
    import torch

    weight = torch.from_numpy(weights.weight(layer) / _spread(scale, layer, weights.weight(layer).ndim))
    bias = torch.from_numpy(weights.bias(layer))
    step = torch.from_numpy(np.ascontiguousarray(_spread(scale, layer, weight.ndim)))
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    floor = weight.floor()
    # Start at the fraction: sigmoid(v) * 1.2 - 0.1 = w - floor(w).
    v = torch.logit((weight - floor + 0.1) / 1.2).requires_grad_()
    # The largest weight sets the scale, so it stays where it is.
    fixed = (weight - weight.round()).abs() < 1e-4
    optimizer = torch.optim.Adam([v], lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    for index in range(STEPS):
        share = torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
        rounded = torch.where(fixed, weight.round(), floor + share) * step
        pick = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator)
        got, wanted = _apply(layer, x[pick], rounded, bias), y[pick]
        loss = (torch.clamp(got, *limits) - torch.clamp(wanted, *limits)).square().sum(layer.channel_axis).mean()
        progress = index / STEPS
        if progress >= _WARM_UP:
            sharpness = 20 - 18 * (progress - _WARM_UP) / (1 - _WARM_UP)
            loss = loss + _REGULARISER * (1 - (2 * share - 1).abs().pow(sharpness)).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    up = torch.sigmoid(v.detach()) >= 0.5
    return torch.where(fixed, weight.round(), floor + up).numpy().astype(np.float32)


def _apply(layer: Layer, x: "Tensor", weight: "Tensor", bias: "Tensor") -> "Tensor":
    """Compute a layer in PyTorch."""
    from kdedge.export.quantize.torch_graph import convolve

    if layer.node.op_type == "Conv":
        return convolve(layer.attributes, x, weight, bias)
    matrix = weight if layer.output_axis == 0 else weight.T
    return x @ matrix.T + bias

"""Bias correction: takes the mean error of every output channel away.

Compares each layer, in order, with the float core. The input of a layer comes from the already corrected quantized
layers before it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from kdedge.benchmarks.session import batch_size
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.layers import Layer, Weights, quantized_layer, set_quantized_bias
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.inputs import InputSpec
from kdedge.progress import track

__all__ = ["correct_biases"]

IMAGES = 256


def correct_biases(quantizer: Quantizer, candidate: Candidate, float_layers: Sequence[str] = ()) -> Quantizer:
    """Subtract the mean error of every output channel from its bias.

    Source: Nagel et al., ICCV 2019, arXiv:1906.04721, sec. 4.2, with the mean measured on calibration images.
    """
    images, spec = quantizer.images[:IMAGES], quantizer.spec
    weights = Weights(quantizer.core)
    for layer in weights.layers:
        weights.set_bias(layer, weights.bias(layer))  # adds zeros to a layer without a bias
    model = onnx.load_model_from_string(quantizer.repaired(weights.core).build(candidate, exclude=float_layers))
    aims = _channel_means(quantizer.original, {layer.node.output[0]: layer for layer in weights.layers}, images, spec)
    with track("quantize: bias correction", len(weights.layers)) as progress:
        for layer in weights.layers:
            node, _ = quantized_layer(model, layer.name)
            [mean] = _channel_means(model, {node.output[0]: layer}, images, spec).values()
            bias = weights.bias(layer) - (mean - aims[layer.node.output[0]]).astype(np.float32)
            weights.set_bias(layer, bias)
            set_quantized_bias(model, node, bias)  # the next layers read the corrected output
            progress.advance(note=layer.name)
    return quantizer.repaired(weights.core)


def _channel_means(
    model: onnx.ModelProto, tensors: Mapping[str, Layer], images: npt.NDArray[Any], spec: InputSpec
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the mean of every channel of the output tensors of layers over the images, each ``[channels]``."""
    run, batch = tensor_runner(model, list(tensors), spec), batch_size(images.shape[1:])
    totals: dict[str, npt.NDArray[np.float64]] = {}
    counts = dict.fromkeys(tensors, 0)
    for start in range(0, len(images), batch):
        for (name, layer), values in zip(tensors.items(), run(images[start : start + batch]), strict=True):
            channels = np.moveaxis(values, layer.channel_axis, 0).reshape(values.shape[layer.channel_axis], -1)
            totals[name] = totals.get(name, 0.0) + channels.sum(1, dtype=np.float64)
            counts[name] += channels.shape[1]
    return {name: total / counts[name] for name, total in totals.items()}

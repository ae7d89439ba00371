"""Error-compensated rounding: the weights not yet rounded take over the rounding error of those before them.

Source: E. Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323, after B. Hassibi and D. Stork, Optimal Brain Surgeon
(1993). For every output channel the rounding minimises the squared error of the layer's output on calibration images.
Two choices are our own. The inputs are centred, because `kdedge.export.quantize.biases.correct_biases` takes a constant
error away. The smallest and the largest weight of every output channel keep their values, because they set the scale.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from kdedge.benchmarks.session import batch_size
from kdedge.export.quantize.biases import correct_biases
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.layers import Layer, Weights, pads_of, quantized_layer, set_quantized_weight
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.progress import track

__all__ = ["round_with_compensation"]

Array = npt.NDArray[np.float64]
Runner = Callable[[npt.NDArray[Any]], list[npt.NDArray[np.float32]]]  # images to tensors
IMAGES = 256
_POSITIONS = 2**15  # of the output map, over all images, at which a convolution's input is read
_DAMPING = 0.01  # of the mean variance, added to every input's variance
_LEAST_DAMPING = 1e-9  # for inputs that never vary
_BLOCK = 128  # inputs whose errors are passed on together


def round_with_compensation(quantizer: Quantizer, candidate: Candidate, float_layers: Sequence[str] = ()) -> Quantizer:
    """Round the weights of every layer with compensation, in order, then correct the biases.

    The input of a layer comes from the rounded quantized layers before it.

    Returns:
        A quantizer whose core has weights on the grid of the candidate; the ranges stay.
    """
    images = quantizer.images[:IMAGES]
    weights = Weights(quantizer.core)
    model = onnx.load_model_from_string(quantizer.build(candidate, exclude=float_layers))
    with track("quantize: error-compensated rounding", len(weights.layers)) as progress:
        for layer in weights.layers:
            node, scale = quantized_layer(model, layer.name)
            if scale is not None:
                run = tensor_runner(model, [node.input[0]], quantizer.spec)
                integers, values = _round_layer(layer, weights.weight(layer), scale, run, images)
                weights.set_weight(layer, values)
                set_quantized_weight(model, node, layer, integers)  # the next layers read the rounded output
            progress.advance(note=layer.name)
    return correct_biases(quantizer.repaired(weights.core), candidate, float_layers)


def _round_layer(
    layer: Layer,
    weight: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    run: Runner,
    images: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the rounded weights of one layer in units of ``scale``, and in units of the weights."""
    by_output = weight if layer.output_axis == 0 else weight.T
    rows = by_output.reshape(len(by_output), -1).astype(np.float64)
    scales = np.broadcast_to(scale.astype(np.float64), len(rows))[:, None]
    covariances = _covariances(layer, by_output.shape[2:], run, images)
    parts = zip(np.split(rows / scales, len(covariances)), covariances, strict=True)
    integers = np.concatenate([_round_rows(part, covariance) for part, covariance in parts])
    as_weights = [values.reshape(by_output.shape).astype(np.float32) for values in (integers, integers * scales)]
    rounded, values = as_weights if layer.output_axis == 0 else (item.T for item in as_weights)
    return rounded, values


def _covariances(
    layer: Layer,
    kernel: Sequence[int],
    run: Runner,
    images: npt.NDArray[Any],
) -> Array:
    """Return the covariance of the inputs of one output value, ``[groups, D, D]``, damped.

    Args:
        layer: The layer.
        kernel: Height and width of a convolution's filters; empty for a matrix product.
        run: Maps images to the input of the layer.
        images: Images or windows.
    """
    batch = batch_size(images.shape[1:])
    rng, groups = np.random.default_rng(0), int(layer.attributes.get("group", 1))
    count, origin, total, products = 0, None, np.zeros(()), np.zeros(())
    for start in range(0, len(images), batch):
        values = run(images[start : start + batch])[0]
        if kernel:
            values = _patches(values, layer, kernel, max(1, _POSITIONS // len(images)), rng)
        values = values.reshape(-1, values.shape[-1])  # a matrix product may have more axes, such as tokens
        if origin is None:
            origin = values.mean(0)  # near the mean, so that sums of squares in float32 are exact enough
        split = (values - origin).reshape(len(values), groups, -1).transpose(1, 0, 2)
        count, total = count + len(values), total + split.sum(1, dtype=np.float64)
        products = products + (split.transpose(0, 2, 1) @ split).astype(np.float64)
    mean = total / count
    covariances = products / count - mean[:, :, None] * mean[:, None, :]
    damping = _DAMPING * np.trace(covariances, axis1=1, axis2=2) / covariances.shape[1] + _LEAST_DAMPING
    return np.asarray(covariances + damping[:, None, None] * np.eye(covariances.shape[1]))


def _patches(
    values: npt.NDArray[np.float32], layer: Layer, kernel: Sequence[int], positions: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return the inputs of a convolution at random positions of each image, ``[N * positions, C * kh * kw]``."""
    attributes = layer.attributes
    top, left, bottom, right = pads_of(attributes, values.shape[2:], kernel)
    (dy, dx), (sy, sx) = attributes.get("dilations", (1, 1)), attributes.get("strides", (1, 1))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    window = ((kernel[0] - 1) * dy + 1, (kernel[1] - 1) * dx + 1)
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(2, 3))[:, :, ::sy, ::sx, ::dy, ::dx]
    rows, columns = views.shape[2:4]
    positions = min(positions, rows * columns)
    chosen = np.stack([rng.choice(rows * columns, positions, replace=False) for _ in values])
    patches = views[np.arange(len(values))[:, None], :, chosen // columns, chosen % columns]
    return patches.reshape(len(values) * positions, -1)


def _round_rows(rows: Array, covariance: Array) -> Array:
    """Round weights to integers.

    Args:
        rows: ``[outputs, D]`` in units of the scale.
        covariance: ``[D, D]`` of the inputs, positive definite.

    Returns:
        Integers between the smallest and the largest weight of each row.
    """
    order = np.argsort(-np.diag(covariance), kind="stable")  # the inputs that vary most are rounded first
    left = rows[:, order]
    low, high = np.rint(left.min(1)), np.rint(left.max(1))
    fixed = (rows == rows.min(1, keepdims=True)) | (rows == rows.max(1, keepdims=True))
    # Row i has what the inputs after i take over of the error of input i.
    passed_on = np.linalg.cholesky(np.linalg.inv(covariance[np.ix_(order, order)])).T
    passed_on /= np.diag(passed_on)[:, None]
    rounded = np.empty_like(left)
    for start in range(0, len(order), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(order)))
        errors = np.zeros_like(left[:, block])
        for column in range(block.start, block.stop):
            values = np.clip(np.rint(left[:, column]), low, high)
            original = rows[:, order[column]]
            rounded[:, column] = np.where(fixed[:, order[column]], np.rint(original), values)
            error = left[:, column] - rounded[:, column]
            left[:, column + 1 : block.stop] -= np.outer(error, passed_on[column, column + 1 : block.stop])
            errors[:, column - start] = error
        left[:, block.stop :] -= errors @ passed_on[block, block.stop :]
    result = np.empty_like(rounded)
    result[:, order] = rounded
    return result

"""Calibration: the range of every tensor over the calibration images.

`TensorStatistics.measure` runs the float core over the images twice, batch by batch: first for the extremes of every
tensor, then for a histogram between them. Its memory does not grow with the number of images (onnxruntime's histogram
calibrators keep every activation, #21979). All calibrators use the same statistics.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from kdedge.benchmarks.session import CPU, batch_size, import_onnxruntime, session_options
from kdedge.export.graph import CORE_INPUT
from kdedge.inputs import InputSpec, image_input
from kdedge.machine import usable_cores

__all__ = ["CALIBRATORS", "TensorStatistics", "tensor_runner"]

Range = tuple[float, float]
BINS = 2048
_LEVELS = 256
_PIXELS = image_input(32)
# The weight of a new image in the moving average of the extremes, as in PyTorch's MovingAverageMinMaxObserver.
_AVERAGING = 0.01
_STEP = 16  # bins between two thresholds of the entropy and MSE calibrators


@dataclass
class _Tensor:
    """Statistics of one tensor.

    Attributes:
        lowest: Smallest value.
        highest: Largest value.
        average_low: Moving average over the images of their smallest value.
        average_high: The same of their largest value.
        counts: ``[BINS] int64``, histogram between ``lowest`` and ``highest``.
    """

    lowest: float = np.inf
    highest: float = -np.inf
    average_low: float = np.nan
    average_high: float = np.nan
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def see(self, values: npt.NDArray[np.float32]) -> None:
        """Update the extremes with a batch, ``[N, values]``."""
        lows, highs = values.min(axis=1), values.max(axis=1)
        self.lowest, self.highest = min(self.lowest, float(lows.min())), max(self.highest, float(highs.max()))
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
            if np.isnan(self.average_low):
                self.average_low, self.average_high = low, high
            self.average_low += _AVERAGING * (low - self.average_low)
            self.average_high += _AVERAGING * (high - self.average_high)

    def count(self, values: npt.NDArray[np.float32]) -> None:
        """Add a batch to the histogram, after `see` of all batches."""
        width = self.highest - self.lowest
        if width > 0:
            bins = ((values - np.float32(self.lowest)) * np.float32(BINS / width)).astype(np.int32)
            self.counts += np.bincount(np.clip(bins, 0, BINS - 1).ravel(), minlength=BINS)

    def centers(self) -> npt.NDArray[np.float64]:
        """Return the middle of every bin, ``[BINS]``."""
        width = (self.highest - self.lowest) / BINS
        return np.asarray(self.lowest + width * (np.arange(BINS) + 0.5), np.float64)


class TensorStatistics:
    """Extremes and histograms of every float tensor of a core.

    Attributes:
        tensors: Statistics by tensor name.
    """

    def __init__(self, tensors: dict[str, _Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def measure(cls, core: onnx.ModelProto, images: npt.NDArray[Any], spec: InputSpec = _PIXELS) -> "TensorStatistics":
        """Run the core over the images.

        Args:
            core: Takes normalised ``image`` float32 ``[N, C, H, W]``; not modified.
            images: Images or windows.
            spec: The input of the deployed model.
        """
        # A tensor that only a ReLU reads is not quantized: the ReLU becomes the lower end of the range behind it. The
        # quantizer requires a range nevertheless.
        uses = Counter(name for node in core.graph.node for name in node.input)
        relus = [node for node in core.graph.node if node.op_type in ("Relu", "Clip") and uses[node.input[0]] == 1]
        behind = {node.input[0]: node.output[0] for node in relus}
        names = sorted({name for node in core.graph.node for name in node.output} - behind.keys())
        run = tensor_runner(core, names, spec)
        # Pixels are already the quantized input: the format decides their range, not the images.
        measured = [*names, CORE_INPUT] if spec.kind == "signal" else names
        tensors = {name: _Tensor() for name in measured}
        batch = batch_size(images.shape[1:])
        for method in ("see", "count"):
            for start in range(0, len(images), batch):
                part = images[start : start + batch]
                found = [*run(part), spec.normalised(part)] if spec.kind == "signal" else run(part)
                for name, values in zip(measured, found, strict=True):
                    if values.dtype == np.float32 and values.shape[:1] == part.shape[:1]:
                        getattr(tensors[name], method)(values.reshape(len(part), -1))
        seen = {name: tensor for name, tensor in tensors.items() if np.isfinite(tensor.lowest)}
        for name, relu in reversed(behind.items()):  # a later one first: a ReLU may follow another
            if relu in seen:  # not a Clip of integers
                seen[name] = seen[relu]
        return cls(seen)

    def ranges(self, calibrator: str) -> dict[str, Range]:
        """Return the range (lowest, highest) of every tensor by a calibrator; that of pixels is exactly 0..1.

        Args:
            calibrator: A key of `CALIBRATORS`.
        """
        choose = CALIBRATORS[calibrator]
        found = {
            name: choose(tensor) if tensor.highest > tensor.lowest else (tensor.lowest, tensor.highest)
            for name, tensor in self.tensors.items()
        }
        return {CORE_INPUT: (0.0, 1.0)} | found


def tensor_runner(
    model: onnx.ModelProto, outputs: Sequence[str], spec: InputSpec = _PIXELS
) -> Callable[[npt.NDArray[Any]], list[npt.NDArray[np.float32]]]:
    """Return a function from images or windows to the named tensors of a graph.

    onnxruntime does not fuse Quantize and Dequantize around these tensors.

    Args:
        model: A core, or a deployed model; not modified.
        outputs: Names of its tensors.
        spec: The input of the deployed model, which may be of any size.
    """
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    del wanted.graph.output[:]
    for name in outputs:
        kind = known[name].type.tensor_type.elem_type if name in known else TensorProto.FLOAT
        wanted.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    session = import_onnxruntime().InferenceSession(
        wanted.SerializeToString(), session_options(usable_cores()), providers=[CPU]
    )
    name = session.get_inputs()[0].name

    def run(images: npt.NDArray[Any]) -> list[Any]:
        result: list[Any] = session.run(
            list(outputs), {name: spec.normalised(images) if name == CORE_INPUT else images}
        )
        return result

    return run


def _minmax(tensor: _Tensor) -> Range:
    return tensor.lowest, tensor.highest


def _moving_average(tensor: _Tensor) -> Range:
    """Average the extremes of the images, later ones counting more (Jacob et al. 2018, arXiv:1712.05877, sec. 3.1)."""
    return tensor.average_low, tensor.average_high


def _percentile(share: float) -> Callable[[_Tensor], Range]:
    """Clip the outermost ``100 - share`` percent of the values: half at each end, or all at the top of a ReLU."""

    def choose(tensor: _Tensor) -> Range:
        outside = 1 - share / 100
        cumulated = np.cumsum(tensor.counts) / tensor.counts.sum()
        edges = np.linspace(tensor.lowest, tensor.highest, BINS + 1)
        if tensor.lowest >= 0:
            return tensor.lowest, float(edges[np.searchsorted(cumulated, 1 - outside) + 1])
        low = float(edges[np.searchsorted(cumulated, outside / 2, side="right")])
        return low, float(edges[np.searchsorted(cumulated, 1 - outside / 2) + 1])

    return choose


def _thresholds(tensor: _Tensor) -> list[Range]:
    """Return ranges from an eighth of the full one up to it; the ends of a signed tensor move together."""
    shares = np.arange(_LEVELS, BINS + 1, _STEP) / BINS
    return [(tensor.lowest * share, tensor.highest * share) for share in shares.tolist()]


def _entropy(tensor: _Tensor) -> Range:
    """Minimise the KL divergence between the histograms before and after clipping and rounding.

    Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017: clip the reference's outliers into its end bins, merge
    the bins of the candidate into 256 levels, spread every level evenly over its non-empty bins. The zeros of a ReLU,
    which every range represents exactly, are left out as in NVIDIA's pytorch-quantization.
    """
    centers, counts = tensor.centers(), tensor.counts.astype(np.float64)
    if tensor.lowest >= 0:
        counts[0] = counts[1]

    def divergence(candidate: Range) -> float:
        low, high = candidate
        inside = (centers >= min(low, 0.0)) & (centers <= max(high, 0.0))
        if not inside.any():  # of a tensor that does not come near zero
            return float("inf")
        first, last = np.flatnonzero(inside)[[0, -1]]
        kept = counts[first : last + 1]
        reference = kept.copy()
        reference[0] += counts[:first].sum()
        reference[-1] += counts[last + 1 :].sum()
        level = np.arange(len(kept)) * _LEVELS // len(kept)
        filled = kept > 0
        per_level = np.bincount(level, kept, _LEVELS)
        bins_per_level = np.maximum(np.bincount(level, filled, _LEVELS), 1)
        spread = np.where(filled, (per_level / bins_per_level)[level], 0.0)
        p, q = reference / reference.sum(), spread / max(spread.sum(), 1.0)
        # An end bin of clipped values only has no counterpart: a floor keeps its penalty finite.
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())

    return min(_thresholds(tensor), key=divergence)


def _mse(tensor: _Tensor) -> Range:
    """Minimise the mean squared error of clipping and rounding to 256 levels over the histogram."""
    centers, counts = tensor.centers(), tensor.counts

    def error(candidate: Range) -> float:
        low, high = min(candidate[0], 0.0), max(candidate[1], 0.0)
        scale = (high - low) / (_LEVELS - 1)
        restored = low + np.clip(np.round((centers - low) / scale), 0, _LEVELS - 1) * scale
        return float((counts * (centers - restored) ** 2).sum())

    return min(_thresholds(tensor), key=error)


CALIBRATORS: dict[str, Callable[[_Tensor], Range]] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "p99.9": _percentile(99.9),
    "p99.99": _percentile(99.99),
    "p99.999": _percentile(99.999),
    "entropy": _entropy,
    "mse": _mse,
}
"""Calibrators by name: from the statistics of a tensor to the range to quantize."""

"""Calibration: which images, and the range of values that every tensor takes over them.

Ranges come from onnxruntime's calibrators, fed batch by batch: the memory they need does not grow with the number of
images, and a last batch of another size does no harm (histogram calibrators fail on one otherwise, onnxruntime #18792).
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.graph import CORE_INPUT
from export.runtime import batch_size

__all__ = ["pick_stratified", "tensor_ranges"]

_HISTOGRAM_BINS = 2048  # quantize_static's 128 make the entropy method min-max in effect (onnxruntime #9597)


def pick_stratified(labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Pick ``count`` images, as evenly over the classes as possible.

    Args:
        labels: ``[N] int64``.
        count: How many to pick; all N if there are fewer.
        seed: Decides which.

    Returns:
        Indices into ``labels``, ascending, ``[min(count, N)] int64``.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    # Every class gives its first image before any gives its second; the permutation breaks ties.
    by_rank = order[np.argsort(rank[order], kind="stable")]
    return np.sort(by_rank[:count])


def tensor_ranges(
    core: Path, images: npt.NDArray[np.uint8], op_types: Sequence[str], *, calibrator: str, percentile: float
) -> Any:
    """Measure the range of every tensor around the given operators.

    Args:
        core: ONNX file of the float core, taking ``image`` float32 ``[N, 3, S, S]`` in 0..1.
        images: ``[N, S, S, 3] uint8`` calibration images.
        op_types: The operators whose inputs and outputs are measured.
        calibrator: ``minmax`` or ``percentile``.
        percentile: Share in percent of all values between the two ends of the range (``percentile`` only).

    Returns:
        onnxruntime's ``TensorsData``: (lowest, highest) by tensor name; the input's range is exactly 0..1.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, create_calibrator

    method, options = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "percentile": (CalibrationMethod.Percentile, {"num_bins": _HISTOGRAM_BINS, "percentile": percentile}),
    }[calibrator]
    batch = batch_size(images.shape[1])
    # The calibrators print their progress; stdout belongs to kdedge's results.
    with tempfile.TemporaryDirectory(prefix="kdedge-") as folder, contextlib.redirect_stdout(io.StringIO()):
        measure = create_calibrator(
            core,
            list(op_types),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=method,
            extra_options=options,
        )
        for start in range(0, len(images), batch):
            measure.collect_data(_OneBatch(images[start : start + batch]))
        ranges = measure.compute_data()
    # Pixels are the quantized input already: their range is what the format says, not what was seen.
    ranges.data[CORE_INPUT] = TensorData(lowest=np.float32(0), highest=np.float32(1))
    return ranges


class _OneBatch:
    """A data reader, as onnxruntime's calibrators call it, that gives one batch."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._images: npt.NDArray[np.uint8] | None = images

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """Return the batch as the core takes it, then None."""
        if self._images is None:
            return None
        scaled = self._images.astype(np.float32) * np.float32(1 / 255)
        self._images = None
        return {CORE_INPUT: np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))}

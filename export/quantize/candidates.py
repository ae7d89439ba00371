"""Candidates of the quantization search, their scores, and the rule that chooses one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.accuracy import balanced_pct, top1_pct
from kdedge.benchmarks.gate import paired_loss
from kdedge.benchmarks.grouped import sampling_of
from kdedge.export.quantize.calibrate import CALIBRATORS

__all__ = ["RULE", "Candidate", "Score", "calibrators", "choose", "formats", "keeps_more", "score", "sizes"]

SIMPLER_COSTS_DB = 1.0
RULE = (
    "The search tries number formats, then calibrators for the best format, then calibration sizes for the best "
    "calibrator. It rejects candidates that the target does not support and those that onnxruntime leaves in float. If "
    "the target is one kind of CPU and this host is one, it also rejects formats whose fastest candidate takes over "
    "1.15 times as long as the fastest of all. A candidate keeps the validation inputs that both FP32 and the "
    "candidate predict correctly; inputs that only INT8 predicts correctly are chance and do not count. It "
    "rejects candidates that are shown to keep fewer inputs than the best (95 % interval of the paired difference; "
    "with the metric `balanced`, of the mean share of the classes; it respects groups as the gate does). "
    f"Of the others the search takes the first whose logit SQNR is within {SIMPLER_COSTS_DB:g} dB of their highest."
)


@dataclass(frozen=True)
class Candidate:
    """One way to quantize.

    Attributes:
        activations: Type of the activations, ``u8`` or ``s8``.
        weights: Type of the weights, ``u8`` or ``s8``.
        per_channel: One weight scale per output channel instead of one per tensor.
        reduce_range: Weights in 7 bits, which cannot overflow 16-bit sums.
        calibrator: A key of `kdedge.export.quantize.calibrate.CALIBRATORS`.
        calibration_images: Number of training images for calibration.
    """

    activations: str = "u8"
    weights: str = "s8"
    per_channel: bool = True
    reduce_range: bool = True
    calibrator: str = "minmax"
    calibration_images: int = 512

    @property
    def format(self) -> str:
        """Types, granularity and range of the weights, for example ``u8s8-channel-rr``."""
        granularity = "channel" if self.per_channel else "tensor"
        return f"{self.activations}{self.weights}-{granularity}{'-rr' * self.reduce_range}"

    @property
    def name(self) -> str:
        """Name of the format, calibrator and calibration size, for example ``u8s8-channel-rr-minmax-512``."""
        return f"{self.format}-{self.calibrator}-{self.calibration_images}"

    @property
    def overflows(self) -> bool:
        """Whether 16-bit sums can overflow on x86 CPUs without VNNI."""
        return self.weights == "s8" and not self.reduce_range


def formats(calibration_images: int) -> list[Candidate]:
    """Return a candidate per number format, from the simplest and most portable."""
    kinds = [("u8", "s8", True), ("s8", "s8", True), ("u8", "u8", False), ("u8", "s8", False), ("s8", "s8", False)]
    return [
        Candidate(activations, weights, per_channel, reduce_range, "minmax", calibration_images)
        for activations, weights, reduce_range in kinds
        for per_channel in (False, True)
    ]


def calibrators(best: Candidate) -> list[Candidate]:
    """Return ``best`` with every other calibrator."""
    return [replace(best, calibrator=name) for name in CALIBRATORS if name != best.calibrator]


def sizes(best: Candidate, available: int) -> list[Candidate]:
    """Return ``best`` with a quarter and four times the calibration images, if that many are available."""
    counts = (best.calibration_images // 4, best.calibration_images * 4)
    return [replace(best, calibration_images=count) for count in counts if 16 <= count <= available]


@dataclass(frozen=True)
class Score:
    """A candidate compared with the FP32 model on the scored validation images.

    Attributes:
        top1_pct: Correct predictions in percent.
        loss_pp: FP32 top-1 minus this top-1, in percentage points.
        fp32_only_right: Number of images that only the FP32 model predicts correctly.
        int8_only_right: Number of images that only this model predicts correctly.
        flips: Number of images with another prediction than FP32.
        sqnr_db: Signal to quantization noise of the logits: 10 log10(sum fp32^2 / sum (fp32 - int8)^2).
        max_abs_error: Largest difference of a logit.
        right: Whether it predicts each image correctly, ``[N] bool``.
        kept: Whether both it and the FP32 model predict each image correctly, ``[N] bool``.
        balanced_over: Classes of the images, ``[N] int64``, if each class counts the same; None: each image does.
        groups: Groups of the images, ``[N] str``, see `kdedge.benchmarks.grouped.sampling_of`; None: no groups.
    """

    top1_pct: float
    loss_pp: float
    fp32_only_right: int
    int8_only_right: int
    flips: int
    sqnr_db: float
    max_abs_error: float
    right: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    balanced_over: npt.NDArray[np.int64] | None = None
    groups: npt.NDArray[np.str_] | None = None

    @property
    def kept_pct(self) -> float:
        """Share of the kept images in percent."""
        return top1_pct(self.kept) if self.balanced_over is None else balanced_pct(self.kept, self.balanced_over)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers, rounded, without the per-image results; ``balanced_pct`` if classes count the same."""
        over = self.balanced_over
        return {
            "top1_pct": round(self.top1_pct, 3),
            **({} if over is None else {"balanced_pct": round(balanced_pct(self.right, over), 3)}),
            "loss_pp": round(self.loss_pp, 3),
            "fp32_only_right": self.fp32_only_right,
            "int8_only_right": self.int8_only_right,
            "flips": self.flips,
            "sqnr_db": round(self.sqnr_db, 2),
            "max_abs_error": round(self.max_abs_error, 4),
        }


def score(
    fp32: npt.NDArray[np.float32],
    int8: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    balanced: bool = False,
    groups: npt.NDArray[np.str_] | None = None,
) -> Score:
    """Compare INT8 with FP32 logits (both ``[N, C] float32``) of images with these labels (``[N] int64``)."""
    fp32_right, int8_right = fp32.argmax(1) == labels, int8.argmax(1) == labels
    error = fp32.astype(np.float64) - int8
    signal, noise = float(np.square(fp32, dtype=np.float64).sum()), float(np.square(error).sum())
    return Score(
        top1_pct=float(int8_right.mean() * 100),
        loss_pp=float((fp32_right.mean() - int8_right.mean()) * 100),
        fp32_only_right=int((fp32_right & ~int8_right).sum()),
        int8_only_right=int((~fp32_right & int8_right).sum()),
        flips=int((fp32.argmax(1) != int8.argmax(1)).sum()),
        # 200 dB means no noise: JSON has no infinity.
        sqnr_db=min(200.0, 10 * math.log10(signal / noise)) if noise > 0 and signal > 0 else 200.0,
        max_abs_error=float(np.abs(error).max()),
        right=int8_right,
        kept=fp32_right & int8_right,
        balanced_over=labels if balanced else None,
        groups=groups,
    )


def keeps_more(one: Score, other: Score) -> bool:
    """Return whether one model is shown to keep more of FP32's correct predictions than another on the same images."""
    sampling = sampling_of(one.kept, other.kept, one.groups)
    return paired_loss(one.kept, other.kept, sampling, one.balanced_over)[1] > 0


def choose(scores: Sequence[Score]) -> int:
    """Return the index of the candidate to take, by the last two sentences of `RULE`.

    Accuracy decides only if a difference is shown. Otherwise the SQNR of the logits decides, a sharper measure on few
    images, and then the order of the candidates. The choice is deterministic.

    Args:
        scores: In the order of the candidates, from the simplest; at least one.
    """
    best = max(scores, key=lambda item: (item.kept_pct, item.sqnr_db))
    pool = [index for index, item in enumerate(scores) if not keeps_more(best, item)]
    highest_db = max(scores[index].sqnr_db for index in pool)
    return next(index for index in pool if scores[index].sqnr_db >= highest_db - SIMPLER_COSTS_DB)

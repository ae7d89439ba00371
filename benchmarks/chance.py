"""Compare a model with a constant prediction, the most frequent class, to decide whether it has learned anything.

Both are scored on the same images, so the comparison is paired (`kdedge.benchmarks.interval.tango_interval`). A
training stage ends with `check_learned`; the gate uses `learned`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.interval import tango_interval
from kdedge.errors import StageError
from kdedge.progress import warn

__all__ = ["Baseline", "check_learned", "learned", "majority_baseline"]

_FEWEST_IMAGES = 30  # fewer cannot show that a model is no better
_FEWEST_PER_CLASS = 5  # fewer cannot estimate a recall


@dataclass(frozen=True)
class Baseline:
    """The constant prediction with the highest accuracy.

    Attributes:
        label: The most frequent class (the first of equally frequent ones).
        right: ``[N] bool``, the images of that class, which the constant prediction classifies correctly.
    """

    label: int
    right: npt.NDArray[np.bool_]

    @property
    def top1_pct(self) -> float:
        """Accuracy of the constant prediction in percent."""
        return float(100 * self.right.mean())


def majority_baseline(labels: npt.NDArray[np.int64]) -> Baseline:
    """Return the best constant prediction for images with these labels (``[N] int64``, N > 0)."""
    label = int(np.bincount(labels).argmax())
    return Baseline(label, labels == label)


def learned(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> bool | None:
    """Return whether a model is significantly better than always predicting the most frequent class.

    A model that finds images of a rare class at the cost of as many false alarms has learned something too. Its mean
    recall is then above chance, 1 / number of classes: the mean recall of predictions that do not depend on the image.

    Args:
        right: ``[N] bool``, whether the model's prediction is correct, image by image.
        labels: ``[N] int64``, the classes of the same images.

    Returns:
        True if the 95 % interval of the paired difference is above 0, or the interval of the mean recall above chance.
        Otherwise False, or None if the images cannot decide: fewer than 30, or so uniform that even a perfect model
        would not be significantly better.
    """
    constant = majority_baseline(labels).right
    if _better(right, constant) or _recalls_above_chance(right, labels):
        return True
    return False if len(labels) >= _FEWEST_IMAGES and _better(np.ones_like(constant), constant) else None


def check_learned(
    what: str,
    right: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    class_names: Sequence[str],
    hint: str,
    *,
    unit: str = "image",
) -> None:
    """Refuse a model that has learned nothing; warn if the inputs are too few to decide.

    Args:
        what: The model in a message, such as ``the teacher``.
        right: As in `learned`, on validation data.
        labels: As in `learned`.
        class_names: Names of the classes.
        hint: Advice for the user.
        unit: Word for one input in messages.

    Raises:
        StageError: The model is not better than always predicting the most frequent class.
    """
    known = learned(right, labels)
    if known:
        return
    baseline = majority_baseline(labels)
    constant = f"always predicting `{class_names[baseline.label]}` ({baseline.top1_pct:.2f} %)"
    reached = f"{what} reaches {100 * right.mean():.2f} % of {len(labels):,} validation {unit}s"
    if known is None:
        warn(f"{reached}, too few to show that it is better than {constant}")
        return
    raise StageError(f"{what} has learned nothing: {reached}, no better than {constant}", hint)


def _recalls_above_chance(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> bool:
    classes, counts = np.unique(labels, return_counts=True)
    classes, counts = classes[counts >= _FEWEST_PER_CLASS], counts[counts >= _FEWEST_PER_CLASS]
    if len(classes) < 2:
        return False
    hits = np.array([right[labels == label].sum() for label in classes])
    smoothed = (hits + 1) / (counts + 2)  # a few hits without a miss are not a certainty
    error = float(np.sqrt(np.sum(smoothed * (1 - smoothed) / counts))) / len(classes)
    return float(np.mean(hits / counts)) - 1.96 * error > 1 / len(classes)


def _better(right: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> bool:
    lower, _ = tango_interval(len(right), int((right & ~other).sum()), int((other & ~right).sum()))
    return lower > 0

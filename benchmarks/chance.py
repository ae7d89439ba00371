"""Has a model learned anything? Its answers are compared with one constant answer: the most frequent class.

Both are right or wrong on the same images, so the comparison is paired (`kdedge.benchmarks.gate.tango_interval`). A
training stage ends with `check_learned`, and the gate uses `learned`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.interval import tango_interval
from kdedge.errors import StageError
from kdedge.progress import warn

__all__ = ["Baseline", "check_learned", "learned", "majority_baseline"]

_FEWEST_IMAGES = 30  # on fewer, a model that is not shown to be better may well be

_FEWEST_PER_CLASS = 5  # a recall on fewer images tells nothing


@dataclass(frozen=True)
class Baseline:
    """The constant answer that is right most often.

    Attributes:
        label: The most frequent class (the first of equally frequent ones).
        right: ``[N] bool``, the images of that class: those on which the constant answer is right.
    """

    label: int
    right: npt.NDArray[np.bool_]

    @property
    def top1_pct(self) -> float:
        """Share of the images on which the constant answer is right, in percent."""
        return float(100 * self.right.mean())


def majority_baseline(labels: npt.NDArray[np.int64]) -> Baseline:
    """Return the constant answer that is right most often on images with these labels (``[N] int64``, N > 0)."""
    label = int(np.bincount(labels).argmax())
    return Baseline(label, labels == label)


def learned(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> bool | None:
    """Return whether a model is shown to be better than always answering the most frequent class.

    Args:
        right: ``[N] bool``, whether the model's answer is right, image by image.
        labels: ``[N] int64``, the classes of the same images.

    A model that finds some of a rare class at the price of as many false alarms has learned something, too: the mean of
    its recalls is above 1 / number of classes, which is what every model has whose answers do not depend on the image.

    Returns:
        True if the 95 % interval of the paired difference is above 0, or that of the mean recall above chance.
        Otherwise False, or None where the images cannot decide it: fewer than 30, or so uniform that not even a model
        without an error would be shown to be better.
    """
    constant = majority_baseline(labels).right
    if _better(right, constant) or _recalls_above_chance(right, labels):
        return True
    return False if len(labels) >= _FEWEST_IMAGES and _better(np.ones_like(constant), constant) else None


def check_learned(
    what: str, right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64], class_names: Sequence[str], hint: str
) -> None:
    """Stop at a model that has learned nothing; only warn where the images are too few to tell.

    Args:
        what: The model in a message, such as ``the teacher``.
        right: As of `learned`, on validation images.
        labels: As of `learned`.
        class_names: Names of the classes.
        hint: What to try.

    Raises:
        StageError: The model is not better than always answering the most frequent class.
    """
    known = learned(right, labels)
    if known:
        return
    baseline = majority_baseline(labels)
    answer = f"always answering `{class_names[baseline.label]}` ({baseline.top1_pct:.2f} %)"
    reached = f"{what} reaches {100 * right.mean():.2f} % of {len(labels):,} validation images"
    if known is None:
        warn(f"{reached}, too few images to show that it is better than {answer}")
        return
    raise StageError(f"{what} has learned nothing: {reached}, no better than {answer}", hint)


def _recalls_above_chance(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> bool:
    classes, counts = np.unique(labels, return_counts=True)
    classes, counts = classes[counts >= _FEWEST_PER_CLASS], counts[counts >= _FEWEST_PER_CLASS]
    if len(classes) < 2:
        return False
    hits = np.array([right[labels == label].sum() for label in classes])
    smoothed = (hits + 1) / (counts + 2)  # a few hits without a miss are no certainty
    error = float(np.sqrt(np.sum(smoothed * (1 - smoothed) / counts))) / len(classes)
    return float(np.mean(hits / counts)) - 1.96 * error > 1 / len(classes)


def _better(right: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> bool:
    lower, _ = tango_interval(len(right), int((right & ~other).sum()), int((other & ~right).sum()))
    return lower > 0

"""The wrong predictions of a model: which classes it confuses, and in which images it is most confident."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["confident_mistakes", "confusions"]

_MOST_MISTAKES = 24


def confusions(
    labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Count the wrong predictions: the confusion matrix without its diagonal, which the per-class table has.

    Args:
        labels: ``[N]`` int64.
        answers: ``[N]`` int64, the predictions.
        class_names: Names of the C classes.

    Returns:
        Rows of ``label``, ``predicted`` (class names) and ``count`` (images), the most frequent first, equally frequent
        ones in the order of the classes.
    """
    wrong = labels != answers
    found, counts = np.unique(np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True)
    rows = [
        {"label": class_names[label], "predicted": class_names[answer], "count": int(count)}
        for (label, answer), count in zip(found, counts, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["count"])


def confident_mistakes(
    labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest probability, at most 24.

    Args:
        labels: ``[N]`` int64.
        logits: ``[N, C]`` float32.
        class_names: Names of the C classes.

    Returns:
        Rows of ``image`` (its number among the test images), ``label``, ``predicted`` (class names) and
        ``probability`` (of the softmax), the highest first.
    """
    exps = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities, answers = exps.max(1) / exps.sum(1), logits.argmax(1)
    wrong = np.flatnonzero(answers != labels)
    chosen = wrong[np.argsort(-probabilities[wrong], kind="stable")][:_MOST_MISTAKES]
    return [
        {
            "image": int(image),
            "label": class_names[labels[image]],
            "predicted": class_names[answers[image]],
            "probability": round(float(probabilities[image]), 4),
        }
        for image in chosen
    ]

"""Top-1 accuracy of an ONNX model, over all images and per class. Never measured together with latency."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.candidate import Runnable
from kdedge.benchmarks.grouped import INDEPENDENT, Sampling
from kdedge.inputs import inputs_at_once
from kdedge.progress import track

__all__ = [
    "answer_changes",
    "balanced_pct",
    "hardly_recognised",
    "macro_f1_pct",
    "per_class_table",
    "per_group_table",
    "predict_logits",
    "top1_pct",
]

_HARDLY_FOUND_PCT = 10.0  # or chance, if that is lower
_MOST_NAMED = 5


def predict_logits(model: Runnable, images: npt.NDArray[Any], *, title: str = "accuracy") -> npt.NDArray[np.float32]:
    """Run a model over many images with a progress bar, in batches of 256 images up to 32 pixels, fewer if larger.

    Args:
        model: The open model.
        images: Images or windows.
        title: Text in front of the progress bar.

    Returns:
        Logits, float32 ``[N, C]``.
    """
    logits = np.empty((len(images), model.classes), np.float32)
    batch_size = inputs_at_once(model.spec.shape, 256, 32)
    with track(title, len(images)) as progress:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            logits[start : start + len(batch)] = model.logits(batch)
            progress.advance(len(batch))
    return logits


def top1_pct(right: npt.NDArray[np.bool_]) -> float:
    """Return the share of correct predictions, ``[N]`` bool, in percent, rounded to 4 decimals."""
    return round(100 * float(right.mean()), 4)


def balanced_pct(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that have images, in percent, rounded to 4 decimals."""
    return round(100 * float(np.mean([right[labels == label].mean() for label in np.unique(labels)])), 4)


def macro_f1_pct(labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that have images, in percent, rounded to 4 decimals.

    Args:
        labels: ``[N]`` int64.
        answers: ``[N]`` int64, the predictions.
    """
    classes = np.unique(labels)
    f1 = [
        2 * np.sum((labels == label) & (answers == label)) / (np.sum(labels == label) + np.sum(answers == label))
        for label in classes
    ]
    return round(100 * float(np.mean(f1)), 4)


def per_class_table(
    labels: npt.NDArray[np.int64],
    fp32_answers: npt.NDArray[np.int64],
    int8_answers: npt.NDArray[np.int64],
    class_names: Sequence[str],
    sampling: Sampling = INDEPENDENT,
) -> list[dict[str, Any]]:
    """Return one row per class: images, recall of both models with its 95 % interval, precision, discordant counts.

    Recall (``fp32_top1_pct``) and interval (``fp32_ci95_pct``) are None for a class without images, the precision
    (``fp32_precision_pct``) for a class that is never predicted.

    Args:
        labels: ``[N]`` int64.
        fp32_answers: ``[N]`` int64, the predictions.
        int8_answers: ``[N]`` int64.
        class_names: Names of the C classes.
        sampling: How the images were drawn.
    """
    rows = []
    fp32_right, int8_right = fp32_answers == labels, int8_answers == labels
    for index, name in enumerate(class_names):
        of_class = labels == index
        fp32, int8 = fp32_right[of_class], int8_right[of_class]
        rows.append(
            {
                "class": name,
                "n": len(fp32),
                "fp32_top1_pct": top1_pct(fp32) if len(fp32) else None,
                "int8_top1_pct": top1_pct(int8) if len(int8) else None,
                "fp32_ci95_pct": sampling.wilson_pct(int(fp32.sum()), len(fp32)) if len(fp32) else None,
                "int8_ci95_pct": sampling.wilson_pct(int(int8.sum()), len(int8)) if len(int8) else None,
                "fp32_precision_pct": _precision_pct(fp32_answers == index, of_class),
                "int8_precision_pct": _precision_pct(int8_answers == index, of_class),
                "fp32_only_right": int(np.count_nonzero(fp32 & ~int8)),
                "int8_only_right": int(np.count_nonzero(int8 & ~fp32)),
            }
        )
    return rows


def _precision_pct(predicted: npt.NDArray[np.bool_], of_class: npt.NDArray[np.bool_]) -> float | None:
    """Return the share of a class among its predictions, both ``[N]`` bool, in percent; None: it is never predicted."""
    return top1_pct(of_class[predicted]) if predicted.any() else None


def hardly_recognised(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the classes that INT8 hardly ever recognises as text; empty: none.

    Args:
        rows: From `per_class_table`.
    """
    seen = [row for row in rows if row["n"]]
    least = min(_HARDLY_FOUND_PCT, 100 / max(len(seen), 1))
    weak = [row for row in seen if row["int8_top1_pct"] < least]
    if not weak:
        return ""
    named = [
        f"{row['class']} ({round(row['n'] * row['int8_top1_pct'] / 100):,} of {row['n']:,})"
        for row in sorted(weak, key=lambda row: (row["int8_top1_pct"], -row["n"]))[:_MOST_NAMED]
    ]
    more = f" and {len(weak) - len(named)} more" if len(weak) > len(named) else ""
    return f"Hardly ever recognised: {', '.join(named)}{more}"


def per_group_table(
    groups: npt.NDArray[np.str_] | None, fp32_right: npt.NDArray[np.bool_], int8_right: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Return one row per group with its images, the accuracy of both models and the discordant counts.

    The lowest INT8 accuracy is first, and of equal ones the larger group. Groups of one image are left out.

    Args:
        groups: ``[N]`` str; an empty name is a group of its own. None: no rows.
        fp32_right: ``[N]`` bool.
        int8_right: ``[N]`` bool.
    """
    if groups is None:
        return []
    named = groups != ""
    names, members = np.unique(groups[named], return_inverse=True)
    fp32, int8 = fp32_right[named], int8_right[named]
    masks = (np.ones_like(fp32), fp32, int8, fp32 & ~int8, int8 & ~fp32)
    counts = [np.bincount(members[mask], minlength=len(names)).tolist() for mask in masks]
    rows = [
        {
            "group": name,
            "n": n,
            "fp32_top1_pct": round(100 * of_fp32 / n, 4),
            "int8_top1_pct": round(100 * of_int8 / n, 4),
            "fp32_only_right": only_fp32,
            "int8_only_right": only_int8,
        }
        for name, n, of_fp32, of_int8, only_fp32, only_int8 in zip(names.tolist(), *counts, strict=True)
        if n > 1
    ]
    return sorted(rows, key=lambda row: (row["int8_top1_pct"], -row["n"]))


def answer_changes(
    labels: npt.NDArray[np.int64],
    fp32_answers: npt.NDArray[np.int64],
    int8_answers: npt.NDArray[np.int64],
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Count the predictions that INT8 changes.

    Args:
        labels: ``[N]`` int64.
        fp32_answers: ``[N]`` int64.
        int8_answers: ``[N]`` int64.
        class_names: Names of the C classes.

    Returns:
        Rows of ``label``, ``fp32``, ``int8`` (class names) and ``count`` (images), one per kind of change, the most
        frequent first, equally frequent ones in the order of the classes.
    """
    changed = fp32_answers != int8_answers
    kinds = np.stack([labels[changed], fp32_answers[changed], int8_answers[changed]], axis=1)
    found, counts = np.unique(kinds, axis=0, return_counts=True)
    rows = [
        {"label": class_names[label], "fp32": class_names[fp32], "int8": class_names[int8], "count": int(count)}
        for (label, fp32, int8), count in zip(found, counts, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["count"])

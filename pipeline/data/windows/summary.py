"""Summary of a data set of windows: plain data for `kdedge data`, and the line with which `run-all` begins."""

from typing import Any

import numpy as np

from kdedge.dataset import split_train_val
from kdedge.pipeline.data.windows.dataset import Windows

__all__ = ["short_summary_of_windows", "summarise_windows", "words_of_windows"]


def summarise_windows(dataset: Windows) -> dict[str, Any]:
    """Return the summary of a data set of windows, JSON-ready."""
    train, val = split_train_val(dataset.train(), dataset.val_fraction, dataset.train_size)
    parts, names, spec = {"train": train, "val": val, "test": dataset.test()}, dataset.class_names, dataset.spec
    counts = {part: np.bincount(split.labels, minlength=len(names)).tolist() for part, split in parts.items()}
    return {
        "data": dataset.name,
        "classes": list(names),
        **spec.record,
        "window_s": spec.window_s,
        **{part: len(split) for part, split in parts.items()},
        "groups": {part: len(np.unique(split.groups)) for part, split in parts.items() if split.groups is not None},
        "train_sha256": dataset.train_sha256(),
        "test_sha256": dataset.test_sha256(),
        "per_class": [
            {"class": name, **{part: counts[part][index] for part in parts}} for index, name in enumerate(names)
        ],
    }


def short_summary_of_windows(dataset: Windows) -> str:
    """Return the data set in one line."""
    facts = summarise_windows(dataset)
    groups, duration = facts["groups"], f" ({dataset.spec.window_s:.3g} s)" if dataset.spec.window_s else ""
    return (
        f"{dataset.name}: {len(dataset.class_names)} classes, {dataset.spec.words}{duration}: "
        f"{facts['train']:,} training, {facts['val']:,} validation and {facts['test']:,} test windows of "
        f"{groups['train']}, {groups['val']} and {groups['test']} groups"
    )


def words_of_windows(facts: dict[str, Any]) -> str:
    """Return the summary as text."""
    spec = facts["input"]
    width = max(len("class"), *(len(row["class"]) for row in facts["per_class"]))
    lines = [
        f"{facts['data']}: windows of {spec['window']} samples"
        + (f" at {spec['rate_hz']:g} Hz, {facts['window_s']:.3g} s" if spec["rate_hz"] else ""),
        *(
            f"channel {name}: mean {mean:.4g}, standard deviation {1 / scale:.4g}"
            for name, mean, scale in zip(spec["channels"], spec["mean"], spec["scale"], strict=True)
        ),
        f"{'class':{width}} {'train':>8} {'val':>8} {'test':>8}",
        *(f"{row['class']:{width}} {row['train']:8,} {row['val']:8,} {row['test']:8,}" for row in facts["per_class"]),
        f"{'groups':{width}} " + " ".join(f"{facts['groups'][part]:8,}" for part in ("train", "val", "test")),
    ]
    return "\n".join(lines)

"""Summary of a data set of windows: plain data for `kdedge data`, and the line with which `run-all` begins."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdedge.dataset import split_train_val
from kdedge.inputs import InputSpec
from kdedge.pipeline.data.duplicates import COPIES
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.windows.dataset import Windows, window_copies

__all__ = [
    "channel_colors",
    "group_counts",
    "short_summary_of_windows",
    "summarise_windows",
    "window_findings",
    "window_sheet",
]

_CONSTANT = 1e-3  # standard deviation of a channel relative to its largest value, below which it hardly varies
_AT_LIMIT_PCT = 1.0  # of the samples at the smallest or largest value, from which a channel is called clipped
_PER_SHEET, _POINTS = 4, 150  # windows of a class that are drawn, and points of each
_HEIGHT = 64  # pixels of a drawn window
_HALF = 3.0  # standard deviations that a drawn window has room for
_COLORS = ("#2f7ed8", "#e07b39", "#3a9d5d", "#c0504d", "#8e6bbf", "#8c6d4f", "#d76fae", "#7f7f7f", "#a5a52a", "#22a6b3")


def summarise_windows(dataset: Windows, config: DataConfig) -> dict[str, Any]:
    """Return the summary of a data set of windows, JSON-ready."""
    train, val = split_train_val(dataset.undecoded(), config.val_fraction, config.train_size)
    parts, names, spec = {"train": train, "val": val, "test": dataset.test()}, dataset.class_names, dataset.spec
    counts = {part: np.bincount(split.labels, minlength=len(names)).tolist() for part, split in parts.items()}
    labels, groups = (np.concatenate([getattr(split, key) for split in parts.values()]) for key in ("labels", "groups"))
    copies = window_copies(**parts)
    recordings = np.bincount([label for label, _ in dataset.recordings], minlength=len(names)).tolist()
    rows = sorted(length for _, length in dataset.recordings)
    return {
        "data": dataset.name,
        "classes": list(names),
        **spec.record,
        "window_s": spec.window_s,
        **{part: len(split) for part, split in parts.items()},
        "groups": {part: len(np.unique(split.groups)) for part, split in parts.items() if split.groups is not None},
        "recordings": sum(recordings),
        "rows": {"smallest": rows[0], "median": rows[len(rows) // 2], "largest": rows[-1]} if rows else None,
        "train_sha256": dataset.train_sha256(),
        "test_sha256": dataset.test_sha256(),
        "per_class": [
            {
                "class": name,
                **{part: counts[part][label] for part in parts},
                "groups": len(np.unique(groups[labels == label])),
                "recordings": recordings[label],
            }
            for label, name in enumerate(names)
        ],
        "channels": [
            _channel(name, train.images[:, :, index].astype(np.float64)) for index, name in enumerate(spec.channels)
        ],
        "unreadable": [],  # a recording that cannot be read is an error
        "duplicates": {kind: len(copies[kind]) for kind in COPIES},
    }


def short_summary_of_windows(dataset: Windows, config: DataConfig) -> str:
    """Return the data set in one line."""
    facts = summarise_windows(dataset, config)
    groups, duration = facts["groups"], f" ({dataset.spec.window_s:.3g} s)" if dataset.spec.window_s else ""
    return (
        f"{dataset.name}: {len(dataset.class_names)} classes, {dataset.spec.words}{duration}: "
        f"{facts['train']:,} training, {facts['val']:,} validation and {facts['test']:,} test windows of "
        f"{groups['train']}, {groups['val']} and {groups['test']} groups"
    )


def window_findings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the findings that only windows have as lines of text, each with its subject."""
    spec, groups, rows = summary["input"], summary["groups"], summary["rows"]
    rate = f" at {spec['rate_hz']:g} Hz ({summary['window_s']:.3g} s)" if spec["rate_hz"] else ", sampling rate unknown"
    lengths = f"{rows['smallest']:,} to {rows['largest']:,} rows, median {rows['median']:,}" if rows else ""
    return [
        ("windows", f"{spec['window']} samples{rate}"),
        *([("recordings", f"{summary['recordings']:,} of {lengths}")] if rows else []),
        ("groups", group_counts(groups)),
        *((f"channel {row['channel']}", _channel_text(row)) for row in summary["channels"]),
    ]


def group_counts(groups: Mapping[str, int]) -> str:
    """Return the numbers of groups of the parts as text."""
    return f"{groups['train']:,} training, {groups['val']:,} validation and {groups['test']:,} test groups"


def channel_colors(channels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the channels with their colors in a `window_sheet`."""
    return list(zip(channels, itertools.cycle(_COLORS), strict=False))


def window_sheet(windows: NDArray[np.float32], spec: InputSpec) -> str:
    """Return an SVG with some of the windows ``[N, L, C]`` as curves, each channel around its mean."""
    chosen = windows[:: -(-len(windows) // _PER_SHEET)] if len(windows) else windows
    step = -(-spec.size // _POINTS)
    heights = _HEIGHT / 2 * (1 - np.clip(spec.normalised(chosen)[:, :, 0, ::step], -_HALF, _HALF) / _HALF)
    width = heights.shape[2]
    lines = [
        f'<polyline fill="none" stroke="{color}" points="'
        + " ".join(f"{number * (width + 10) + x},{y:.1f}" for x, y in enumerate(curve))
        + '"/>'
        for number, window in enumerate(heights)
        for (_, color), curve in zip(channel_colors(spec.channels), window, strict=True)
    ]
    total = len(chosen) * (width + 10)
    size = f'width="{total}" height="{_HEIGHT}" viewBox="0 0 {total} {_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(lines)}</svg>'


def _channel(name: str, values: NDArray[np.float64]) -> dict[str, Any]:
    """Return statistics of the training windows of a channel ``[N, L]``."""
    low, high, deviation = values.min(), values.max(), values.std()
    return {
        "channel": name,
        "mean": float(values.mean()),
        "standard_deviation": float(deviation),
        "smallest": float(low),
        "largest": float(high),
        "hardly_varies": bool(deviation <= _CONSTANT * max(abs(low), abs(high))),
        "at_limits_pct": round(100 * float(np.mean((values == low) | (values == high))), 3),
    }


def _channel_text(row: Mapping[str, Any]) -> str:
    text = (
        f"mean {row['mean']:.4g}, standard deviation {row['standard_deviation']:.4g}, "
        f"{row['smallest']:.4g} to {row['largest']:.4g}"
    )
    if row["hardly_varies"]:
        return f"{text}: hardly varies"
    if row["at_limits_pct"] >= _AT_LIMIT_PCT:
        return f"{text}: {row['at_limits_pct']:.1f} % of the samples are at these limits, as if clipped"
    return text

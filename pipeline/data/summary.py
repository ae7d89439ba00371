"""Summary of a data set for `kdedge data`: counts of every class, files left out, duplicates.

The training images are decoded and the test images checked, so a data set that `kdedge data` accepts is readable.
"""

from collections import Counter
from typing import Any

import numpy as np

from kdedge.dataset import split_train_val
from kdedge.pipeline.data.folder import Folder
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset

__all__ = ["print_summary", "summarise"]

_MOST_ROWS = 40


def summarise(config: DataConfig) -> dict[str, Any]:
    """Return the summary of a data set, JSON-ready.

    Raises:
        InputError: The data set is missing or damaged.
        StageError: CIFAR-10 cannot be downloaded.
    """
    dataset = open_dataset(config)
    names = dataset.class_names
    train, val = split_train_val(dataset.train(), config.val_fraction, config.train_size)
    train_counts, val_counts = (np.bincount(part.labels, minlength=len(names)).tolist() for part in (train, val))
    test_counts = dataset.test_counts()
    left_out = dataset.left_out if isinstance(dataset, Folder) else {}
    of_class, of_kind = Counter[str](), Counter[str]()
    for (name, kind), count in left_out.items():
        of_class[name] += count
        of_kind[kind] += count
    summary = {
        "data": dataset.name,
        "classes": list(names),
        "image_size": dataset.image_size,
        "train": len(train.labels),
        "val": len(val.labels),
        "test": sum(test_counts),
        "train_sha256": dataset.train_sha256(),
        "test_sha256": dataset.test_sha256(),
        "per_class": [
            {"class": name, "train": a, "val": b, "test": c, "left_out": of_class[name]}
            for name, a, b, c in zip(names, train_counts, val_counts, test_counts, strict=True)
        ],
        "left_out": dict(of_kind),
    }
    if isinstance(dataset, Folder):
        dataset.warn_duplicates()
        summary |= {"source_sizes": dataset.source_sizes(), "duplicates": dataset.duplicates()}
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """Print the result of `summarise` as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = summary["per_class"]
    shown = rows if len(rows) <= _MOST_ROWS else sorted(rows, key=lambda row: row["train"])[: _MOST_ROWS // 2]
    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column("class", footer="all" if shown is rows else f"all {len(rows)}")
    for title, key in (("training", "train"), ("validation", "val"), ("test", "test"), ("left out", "left_out")):
        total = sum(summary["left_out"].values()) if key == "left_out" else summary[key]
        table.add_column(title, justify="right", footer=f"{total:,}")
    for row in shown:
        table.add_row(Text(row["class"]), *(f"{row[key]:,}" for key in ("train", "val", "test", "left_out")))
    console = Console(highlight=False, markup=False)
    console.print(table)
    if shown is not rows:
        console.print(f"({len(shown)} of {len(rows)} classes, those with the fewest training images; --json has all)")
    resized = f"resized to {summary['image_size']} x {summary['image_size']} pixels"
    if sizes := summary.get("source_sizes"):
        small, median, large = (" x ".join(map(str, sizes[key])) for key in ("smallest", "median", "largest"))
        console.print(f"images: {small} to {large} pixels, median {median}; {resized}")
    else:
        console.print(f"images: {resized}")
    if summary["left_out"]:
        console.print("left out: " + ", ".join(f"{count} {kind}" for kind, count in summary["left_out"].items()))

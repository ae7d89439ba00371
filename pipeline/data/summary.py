"""Summary of a data set: plain data for `kdedge data`, and one line with which `run-all` begins."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdedge.benchmarks.gate import images_to_pass
from kdedge.benchmarks.grouped import sampling_of_sizes
from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.dataset import Split, split_train_val
from kdedge.pipeline.data.inspection import inspect, pixel_facts, range_hint, sample, size_hint, sizes_of
from kdedge.pipeline.data.items import Item, groups_of
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import find_dataset, opened
from kdedge.pipeline.data.user_images import UserImages
from kdedge.pipeline.data.windows.dataset import Windows
from kdedge.pipeline.data.windows.summary import short_summary_of_windows, summarise_windows

__all__ = ["short_summary", "summarise"]

_FEW, _FEWER = 200, 50  # images whose color and whose size the short summary looks at
_LIKELY_CHANGED = 0.01  # share of the images on which exactly one of FP32 and INT8 is right
_POWER = 0.8  # probability that the gate passes a model without a loss
_KERNEL = 3  # pixels, of the first convolution of the default student


def summarise(config: DataConfig) -> tuple[dict[str, Any], Split]:
    """Return the summary of a data set, JSON-ready, and a stratified sample of its training images.

    Files that cannot be read are listed under ``unreadable`` and otherwise left out.

    Raises:
        InputError: The data set is missing or damaged, or too few of its files can be read.
        StageError: CIFAR-10 cannot be downloaded.
    """
    found = find_dataset(config)
    if isinstance(found, Windows):
        facts = summarise_windows(found, config)
        counts = [row["train"] for row in facts["per_class"]]
        gate = {"gate": _gate(found.parts["test"].groups)}
        return facts | _class_sizes(found.class_names, counts) | gate, found.parts["train"]
    inspection = inspect(found, config)
    dataset, errors = inspection.dataset, inspection.unreadable
    names = dataset.class_names
    whole = dataset.undecoded()
    train, val = split_train_val(whole, config.val_fraction, config.train_size)
    train_counts, val_counts = (np.bincount(part.labels, minlength=len(names)).tolist() for part in (train, val))
    test_counts = dataset.test_counts()
    left_out = dataset.left_out if isinstance(dataset, UserImages) else {}
    of_class, of_kind = Counter[str](), Counter[str]()
    for (name, kind), count in left_out.items():
        of_class[name] += count
        of_kind[kind] += count
    shown = sample(dataset)
    summary = {
        "data": dataset.name,
        "classes": list(names),
        "image_size": dataset.spec.size,
        "resize": config.resize,
        "train": len(train.labels),
        "val": len(val.labels),
        "test": sum(test_counts),
        "train_sha256": dataset.train_sha256(),
        "test_sha256": dataset.test_sha256(),
        "per_class": [
            {"class": name, "train": a, "val": b, "test": c, "left_out": of_class[name]}
            for name, a, b, c in zip(names, train_counts, val_counts, test_counts, strict=True)
        ],
        **_class_sizes(names, train_counts),
        "left_out": dict(of_kind),
        "unreadable": [{"file": str(error.path), "reason": error.reason} for error in errors],
        "duplicates": inspection.duplicates,
        "near_duplicates": inspection.near_duplicates,
        "pixels": pixel_facts(shown),
        "gate": _gate(groups_of(dataset.test_items) if isinstance(dataset, UserImages) else None),
        "defaults": _defaults(shown),
    }
    if inspection.files:
        files = inspection.files
        summary |= {"source_sizes": files["sizes"], **{key: files[key] for key in files if key != "sizes"}}
    if isinstance(dataset, UserImages):
        summary |= _groups({"train": dataset.train_items, "val": dataset.val_items, "test": dataset.test_items})
        dataset.warn_duplicates()
    return summary, shown


def short_summary(config: DataConfig) -> str:
    """Return the data set in one line: classes, images, the smallest class, grey or color, copies, size.

    Only training images are opened, and few of them.

    Raises:
        InputError: An image cannot be read.
    """
    dataset = opened(config)
    if isinstance(dataset, Windows):
        return short_summary_of_windows(dataset, config)
    labels, names = dataset.undecoded().labels, dataset.class_names
    counts = np.bincount(labels, minlength=len(names))
    few = pixel_facts(sample(dataset, _FEW))
    parts = [
        f"{len(names)} classes, {len(labels):,} training and {sum(dataset.test_counts()):,} test images",
        f"smallest class {names[counts.argmin()]} with {counts.min():,}",
        "one grey channel" if dataset.spec.grey else "grey" if few["grey"] == few["images"] else "color",
    ]
    if hint := range_hint(few["largest"]):
        parts.append(hint)
    if isinstance(dataset, UserImages):
        parts.append(f"{dataset.duplicates()['test_copies']:,} test images are copies of training images")
        items, size = dataset.train_items, dataset.spec.size
        median = sizes_of([item.overview((1, 1)) for item in items[:: -(-len(items) // _FEWER)]])["median"]
        resized = f"resized to {size} x {size}{size_hint(median, size)}"
        parts.append(f"{median[0]} x {median[1]} pixels in the median, {resized}")
    return f"{dataset.name}: {', '.join(parts)}"


def _class_sizes(names: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    """Return the smallest and the largest class, by training images or windows."""
    rarest, largest = int(np.argmin(counts)), int(np.argmax(counts))
    return {
        "smallest_class": {"class": names[rarest], "train": counts[rarest]},
        "largest_class": {"class": names[largest], "train": counts[largest]},
        "imbalance": round(counts[largest] / counts[rarest], 2),
    }


def _groups(parts: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    """Return the number of groups of each part if an image has one; those without count as a group each."""
    if not any(item.group for items in parts.values() for item in items):
        return {}
    names = {part: {item.group or index for index, item in enumerate(items)} for part, items in parts.items()}
    return {"groups": {part: len(found) for part, found in names.items()}}


def _gate(groups: NDArray[np.str_] | None) -> dict[str, Any]:
    """Return the number of independent test images or windows that the gate needs, and whether groups are too few."""
    limit_pp = BenchmarkConfig().limit_pp
    return {
        "limit_pp": limit_pp,
        "least_test_images": images_to_pass(limit_pp, discordance=0, power=_POWER),
        "likely_changed_pct": 100 * _LIKELY_CHANGED,
        "likely_test_images": images_to_pass(limit_pp, discordance=_LIKELY_CHANGED, power=_POWER),
        "too_few_groups": sampling_of_sizes(groups).too_few,
    }


def _defaults(images: Split) -> dict[str, Any] | None:
    """Return which defaults follow from these training images; None: PyTorch, which decides them, is not installed."""
    if not find_spec("torch"):
        return None
    from kdedge.pipeline.data.mirroring import mirrored_keep_class
    from kdedge.pipeline.models.initial import start_filters

    whitening = len(start_filters(images.images, _KERNEL)) > 0
    color = images.spec.color
    return {"mirrored": mirrored_keep_class(images), "init": "whitening" if whitening else "random", "color": color}

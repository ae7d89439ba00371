"""Divides a user's images into training, validation and test images, and keeps groups together.

Images of one group (a patient, a camera, a video) resemble each other more than new images will. A group in two parts
would make the measured accuracy too high.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdedge.dataset import TEST_SEED, VAL_SEED, hold_out
from kdedge.errors import InputError
from kdedge.pipeline.data.class_folders import LeftOut
from kdedge.pipeline.data.items import Item, labels_of

__all__ = ["Listed", "Parts", "check_groups", "divide", "hold_out_groups"]

Parts = dict[str, list[Item]]
"""Images by ``train``, ``val`` and ``test``."""


@dataclass(frozen=True)
class Listed:
    """Images as a folder, a table or a NumPy file lists them.

    Attributes:
        kind: ``folder``, ``table``, ``arrays``, ``hf`` or ``shards``.
        root: The folder or the file.
        class_names: Names of the classes, in the order of the labels.
        parts: The images; all are ``train`` if the user did not divide them.
        divided: Whether the user divided them.
        left_out: Number of files that may be images and are not used, by class (empty if none) and extension or place.
        expected: The expected layout, for messages.
    """

    kind: str
    root: Path
    class_names: tuple[str, ...]
    parts: Parts
    divided: bool
    expected: str
    left_out: LeftOut = field(default_factory=dict)


# Orders of the groups that are tried; fewer where there are many groups.
_ORDERS, _MOST_VISITS = 20, 200_000


def divide(parts: Parts, names: Sequence[str], root: object, val_fraction: float, test_fraction: float) -> Parts:
    """Hold out the parts that are missing from the training images.

    Validation images without groups stay in ``train``: `kdedge.dataset.split_train_val` holds them out.

    Args:
        parts: The parts that the user has. Without ``train``, nothing is held out.
        names: Class names.
        root: The data set, for messages.
        val_fraction: Share of the training images for validation.
        test_fraction: Share of the training images for the test.

    Raises:
        InputError: A class has fewer images or groups than parts.
    """
    if "train" not in parts:
        return parts
    held = [name for part, name in (("val", "validation"), ("test", "test")) if part not in parts]
    _check_counts(parts["train"], names, root, held)
    grouped = any(item.group for item in parts["train"])
    parts = dict(parts)
    for part, fraction, seed in (("test", test_fraction, TEST_SEED), ("val", val_fraction, VAL_SEED)):
        train, rng = parts["train"], np.random.default_rng(seed)
        if part in parts or (part == "val" and not grouped):
            continue
        still = 2 if part == "test" and "val" not in parts else 1
        if grouped:
            kept, taken = hold_out_groups(labels_of(train), _groups_of(train), fraction, rng, still)
        else:
            kept, taken = hold_out(labels_of(train), fraction, rng, still)
        parts["train"], parts[part] = [train[index] for index in kept], [train[index] for index in taken]
    return parts


def hold_out_groups(
    labels: NDArray[np.int64], groups: NDArray[np.int64], fraction: float, rng: np.random.Generator, least_kept: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out a share of every class, whole groups only, as exactly as they allow.

    Groups are taken in random order if that brings the held shares of their classes closer to ``fraction``; the best of
    several orders is the result.

    Args:
        labels: Class of each image, [N] int64.
        groups: Group of each image, [N] int64.
        fraction: Share to hold out.
        rng: Source of the orders.
        least_kept: Number of groups of each class that are never held out.

    Returns:
        Indices that are kept and indices that are held out, both ascending int64.
    """
    sizes = np.bincount(labels)
    # For each group its classes, and its share of the images of each.
    members: list[list[tuple[int, float]]] = [[] for _ in range(int(groups.max()) + 1)]
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    for group, label, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        members[group].append((label, count / int(sizes[label])))
    groups_of_class = np.bincount(pairs[1], minlength=len(sizes))

    def cost(share: float) -> float:
        return (share - fraction) ** 2 if share else 1.0  # a class without held images is the worst

    best: tuple[float, list[int]] = (np.inf, [])
    for _ in range(max(1, min(_ORDERS, _MOST_VISITS // len(members)))):
        shares, free, taken = [0.0] * len(sizes), groups_of_class - least_kept, []
        for group in rng.permutation(len(members)).tolist():
            gain = sum(cost(shares[label]) - cost(shares[label] + share) for label, share in members[group])
            if gain > 0 and all(free[label] > 0 for label, _ in members[group]):
                taken.append(group)
                for label, share in members[group]:
                    shares[label] += share
                    free[label] -= 1
        best = min(best, (sum(map(cost, shares)), taken))
    held = np.isin(groups, best[1])
    return np.flatnonzero(~held), np.flatnonzero(held)


def check_groups(root: Path, parts: Parts) -> None:
    """Refuse a group in two parts.

    Raises:
        InputError: There is one.
    """
    part_of: dict[str, str] = {}
    for part, items in parts.items():
        for group in (item.group for item in items if item.group):
            if (other := part_of.setdefault(group, part)) != part:
                raise InputError(
                    f"the group {group} of {root} is in {other} and in {part}", "put each group into one part"
                )


def _groups_of(items: Sequence[Item]) -> NDArray[np.int64]:
    """Return the number of the group of each image, [N] int64; an image without one has its own."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(item.group or index, len(numbers)) for index, item in enumerate(items)])


def _check_counts(items: Sequence[Item], names: Sequence[str], root: object, held: Sequence[str]) -> None:
    """Refuse a class that has too few images or groups for training and for the parts that are held out."""
    found: list[set[object]] = [set() for _ in names]
    for index, item in enumerate(items):
        found[item.label].add(item.group or index)
    label = min(range(len(names)), key=lambda label: len(found[label]))
    count, least = len(found[label]), 1 + len(held)
    if count >= least:
        return
    first = next((item for item in items if item.label == label), None)
    where = f"class {names[label]} of {root}" if first is None or first.place else f"class folder {first.path.parent}"
    what = "group" if first and first.group else "training image" if first is None else "image"
    parts = ", ".join(["training", *held[:-1]]) + (f" and {held[-1]}" if held else "")
    raise InputError(
        f"the {where} has {count} {what}{'' if count == 1 else 's'}, too few to divide: expected at least {least} "
        f"(for {parts})",
        f"add {what}s to that class or remove it",
    )

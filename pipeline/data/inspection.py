"""Looks at every image of a data set once, for `kdedge data`: damage, sizes, modes, hashes, thumbnails.

Files are decoded (large JPEGs to a fraction of their side), so an image that passes can be read. Statistics of pixels
come from a stratified sample of the training images. Other data sets than files are decoded whole.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdedge.dataset import Dataset, Split, keep_used
from kdedge.image_cache import IN_MEMORY
from kdedge.images import Overview, UnreadableImageError, overview_pixels
from kdedge.images import unreadable as unreadable_images
from kdedge.pipeline.data.duplicates import COPIES, THUMBNAIL, find_copies, near_pairs, same, union
from kdedge.pipeline.data.items import labels_of
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.user_images import UserImages
from kdedge.thread_pool import for_each

__all__ = ["Inspection", "inspect", "pixel_facts", "range_hint", "sample", "size_hint", "sizes_of"]

_MOST_SAMPLED = 2000
_LEAST_OF_A_CLASS = 10  # in the sample, where there are that many
_LEAST_TO_DIVIDE = 2  # images of a class, for training and validation
_MOST_COMPARED = 60_000  # images: the time grows with the square
# Images with a near copy in another class, above which the pictures are too much alike to find copies.
_LOOK_ALIKE, _LOOK_ALIKE_SHARE = 20, 0.01
_MOST_EXAMPLES = 20
_MOST_COLOR = 8  # difference between the channels of a grey image: JPEG adds some
_MOST_SIZE = 512  # pixels, of --image-size
_DARK = 64  # of 255: images without a brighter pixel lose most of their grey levels
_LEAST_SPREAD = 2.0  # standard deviation of a channel that is not constant


@dataclass(frozen=True)
class Inspection:
    """Findings in the images of a data set.

    Attributes:
        dataset: The data set without the files that cannot be read.
        unreadable: Those files.
        files: ``sizes``, ``modes``, ``transparent`` and ``several_frames`` of the files; empty for
            arrays.
        duplicates: Images with the same bytes or pixels, see `_copies`.
        near_duplicates: Other images with the same picture.
    """

    dataset: Dataset
    unreadable: tuple[UnreadableImageError, ...]
    files: dict[str, Any]
    duplicates: dict[str, Any]
    near_duplicates: dict[str, Any]


def inspect(dataset: Dataset, config: DataConfig) -> Inspection:
    """Look at every image of a data set, of the known sets at those that are used.

    Raises:
        InputError: The data set is damaged, or a file changes meanwhile.
    """
    if isinstance(dataset, UserImages):
        return _inspect_files(dataset)
    used = keep_used(dataset.undecoded(), config.val_fraction, config.train_size)
    return _inspect_arrays(dataset, dataset.decoded(used))


def _inspect_files(folder: UserImages) -> Inspection:
    seen: dict[int, Overview] = {}
    errors: dict[int, UnreadableImageError] = {}

    def look(index: int) -> None:
        try:
            seen[index] = folder.items[index].overview(THUMBNAIL)
        except UnreadableImageError as error:
            errors[index] = error

    for_each(len(folder.items), look, "reading images")
    found = [seen[index] for index in sorted(seen)]
    unreadable = tuple(errors[index] for index in sorted(errors))
    folder = folder.without(errors)
    learned = labels_of(folder.train_items + folder.val_items)
    trained, least = (labels_of(folder.train_items), 1) if folder.val_items else (learned, _LEAST_TO_DIVIDE)
    if errors and np.bincount(trained, minlength=len(folder.class_names)).min() < least:
        raise unreadable_images(unreadable)
    files = {
        "sizes": sizes_of(found),
        "modes": dict(Counter(image.mode for image in found).most_common()),
        "transparent": sum(image.transparent for image in found),
        "several_frames": sum(image.several_frames for image in found),
    }
    labels, test = labels_of(folder.items), np.arange(len(folder.items)) >= len(learned)
    names = [folder.file_name(index) for index in range(len(folder.items))]
    digests = [item.digest() for item in folder.items]
    return Inspection(folder, unreadable, files, *_copies(digests, [i.thumbnail for i in found], labels, test, names))


def _inspect_arrays(dataset: Dataset, train: Split) -> Inspection:
    parts = (train, dataset.test())
    digests = [hashlib.sha256(image.tobytes()).digest() for part in parts for image in part.images]
    thumbnails = [overview_pixels(image, THUMBNAIL).thumbnail for part in parts for image in part.images]
    names = [f"{title} image {index}" for title, part in zip(("training", "test"), parts, strict=True)
             for index in part.dataset_indices]  # fmt: skip
    labels, test = np.concatenate([part.labels for part in parts]), np.arange(len(names)) >= len(parts[0])
    return Inspection(dataset, (), {}, *_copies(digests, thumbnails, labels, test, names))


def _copies(
    digests: Sequence[bytes],
    thumbnails: Sequence[NDArray[np.uint8]],
    labels: NDArray[np.int64],
    test: NDArray[np.bool_],
    names: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the exact and the near copies: the number of each kind, and up to 20 examples (image, its copy).

    Digits and letters of different classes look alike as thumbnails. Near copies are then not judged.
    """
    exact = same(digests)
    further = {index for group in exact for index in group[1:]}
    compared = different = np.array([index for index in range(len(names)) if index not in further], np.int64)
    if len(different) > _MOST_COMPARED:
        compared = np.sort(np.random.default_rng(0).choice(different, _MOST_COMPARED, replace=False))
    pairs = near_pairs(np.stack([thumbnails[index] for index in compared])) if len(compared) else []
    near = [compared[group].tolist() for group in union(pairs)]
    exact_copies, near_copies = (find_copies(groups, labels, test) for groups in (exact, near))
    judged = len(near_copies["in_two_classes"]) <= max(_LOOK_ALIKE, _LOOK_ALIKE_SHARE * len(compared))
    if not judged:
        near_copies = find_copies([], labels, test)
    counts = {"judged": judged, "different": len(different), "compared": len(compared)}
    return _facts(exact_copies, names), {**_facts(near_copies, names), **counts}


def _facts(copies: dict[str, list[tuple[int, int]]], names: Sequence[str]) -> dict[str, Any]:
    counts = {kind: len(copies[kind]) for kind in COPIES}
    examples = {
        f"{kind}_examples": [[names[one], names[other]] for one, other in copies[kind][:_MOST_EXAMPLES]]
        for kind in COPIES
    }
    return counts | examples


def sample(dataset: Dataset, most: int = _MOST_SAMPLED) -> Split:
    """Return about ``most`` decoded training and validation images, stratified by class, always the same."""
    whole = dataset.undecoded()
    chosen = _stratified(whole.labels, min(most, IN_MEMORY // dataset.spec.zeros(1).nbytes))
    part = replace(
        whole, images=whole.images[chosen], labels=whole.labels[chosen], subset_indices=whole.dataset_indices[chosen],
        validation=None,
    )  # fmt: skip
    return dataset.decoded(part)


def _stratified(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the indices of a share of every class, of rare ones at least 10 images if ``most`` allows it."""
    if len(labels) <= most:
        return np.arange(len(labels))
    rng = np.random.default_rng(0)
    classes, counts = np.unique(labels, return_counts=True)
    least = max(1, min(_LEAST_OF_A_CLASS, most // (2 * len(classes))))
    quotas = least + max(0, most - least * len(classes)) * counts // len(labels)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:quota] for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def sizes_of(images: Sequence[Overview]) -> dict[str, list[int]]:
    """Return width and height of the smallest, median and largest image, by area; empty: there are none."""
    sizes = sorted((image.size for image in images), key=math.prod)
    places = {"smallest": 0, "median": len(sizes) // 2, "largest": -1}
    return {name: list(sizes[place]) for name, place in places.items()} if sizes else {}


def size_hint(median: Sequence[int], size: int) -> str:
    """Return advice on images of this median size of which a resize to ``size`` leaves less than half a side."""
    return ": a larger --image-size keeps more detail" if 2 * size <= min(*median, _MOST_SIZE) else ""


def range_hint(largest: int) -> str:
    """Return advice on images whose largest value is far from 255, such as 12 bits in a 16-bit file; empty: none."""
    return f"no value above {largest} of 255: scale the files to the range of their format" if largest < _DARK else ""


def pixel_facts(split: Split) -> dict[str, Any]:
    """Return statistics of decoded images.

    Returns:
        ``images``: their number; ``grey`` and ``blank``: the number of images without color and of images of one
        color; ``mean`` and ``std`` of each channel, 0 to 255; ``largest``: the largest value; ``constant_channels``:
        the channels that hardly vary.
    """
    images, grey, blank = split.images, 0, 0
    for image in images:
        grey += int(np.ptp(image, axis=2).max()) <= _MOST_COLOR
        blank += float(image.std((0, 1)).max()) < _LEAST_SPREAD
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2), dtype=np.float32)
    constant = [name for name, spread in zip(split.spec.channels, std, strict=True) if spread < _LEAST_SPREAD]
    return {
        "images": len(images),
        "grey": grey,
        "blank": blank,
        "mean": [round(float(value), 1) for value in mean],
        "std": [round(float(value), 1) for value in std],
        "largest": int(images.max()),
        "constant_channels": constant,
    }

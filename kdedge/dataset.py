"""The interface of a data set, and the split of its training images into train and validation."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdedge.errors import InputError
from kdedge.inputs import InputSpec, image_input

__all__ = ["Dataset", "Split", "hold_out", "keep_used", "split_train_val"]

# The two kinds of split must not draw the same permutations.
TEST_SEED = (0, 1)
VAL_SEED = (0, 2)


@dataclass(frozen=True, eq=False)
class Split:
    """Images or windows of a signal, with their labels.

    Attributes:
        images: Pixels, uint8 [N, S, S, 3] RGB or [N, S, S, 1] grey; or windows in the user's units, [N, L, C] float32.
        labels: Class of each image, an index into the class names, [N] int64.
        class_names: Names of the classes, for messages; empty if only their numbers are known.
        subset_indices: Index of each image in the whole part of the data set, [N] int64; None: the split is the whole
            part.
        validation: Which images are set aside for validation, [N] bool; None: `split_train_val` chooses.
        groups: Name of the group of each image (a patient, a recording), [N] str; an image with an empty name has a
            group of its own. None: the data set has no groups.
        signal: The input of a model for windows; None: images.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    subset_indices: NDArray[np.int64] | None = None
    validation: NDArray[np.bool_] | None = None
    groups: NDArray[np.str_] | None = None
    signal: InputSpec | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dataset_indices(self) -> NDArray[np.int64]:
        """Index of each image in the whole part of the data set, [N] int64: the same in every split of it."""
        return np.arange(len(self.labels)) if self.subset_indices is None else self.subset_indices

    @property
    def spec(self) -> InputSpec:
        """The input of a model for this data."""
        return self.signal or image_input(self.images.shape[1], grey=self.images.shape[3] == 1)


class Dataset(Protocol):
    """A data set with checked files."""

    @property
    def name(self) -> str:
        """Short name for reports, such as ``cifar10``."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        ...

    @property
    def spec(self) -> InputSpec:
        """The input of models for this data set."""
        ...

    def train(self) -> Split:
        """Decode all images for training and validation."""
        ...

    def undecoded(self) -> Split:
        """Return all training and validation images as far as nothing is decoded or resized for it."""
        ...

    def decoded(self, some: Split) -> Split:
        """Return a part of `undecoded` with its pixels, see `kdedge.image_cache.decoded_images`."""
        ...

    def test(self) -> Split:
        """Decode the test images. Only the benchmark and `kdedge data`, which chooses nothing, may call this."""
        ...

    def train_sha256(self) -> str:
        """Return the SHA-256 of the result of `train`, as 64 hexadecimal digits."""
        ...

    def test_counts(self) -> list[int]:
        """Return the number of test images of each class, without reading them."""
        ...

    def test_sha256(self) -> str:
        """Return the SHA-256 of the result of `test`, as 64 hexadecimal digits.

        Runs before training, so it also reports files that `test` could not read.
        """
        ...


def split_train_val(split: Split, val_fraction: float, train_size: int = 0) -> tuple[Split, Split]:
    """Divide training images into train and validation, stratified by class.

    ``split.validation`` decides the validation part if it is set. Otherwise the result depends only on the labels and
    the arguments, not on the seed of a run, so teacher and student share the validation images. Both parts keep the
    order of ``split``. The validation part is the same for every ``train_size``.

    Args:
        split: All training images.
        val_fraction: Share of the images of each class that is held out for validation, 0..1.
        train_size: Number of training images to keep, stratified by class (0: all).

    Returns:
        The training and the validation part. Each has at least one image of every class; a validation part from
        ``split.validation`` may lack classes.

    Raises:
        InputError: A class has fewer than two images, or ``train_size`` is too large or leaves a class without an
            image.
    """
    train, val = _divide(split, val_fraction, train_size)
    return _take(split, train), _take(split, val)


def keep_used(split: Split, val_fraction: float, train_size: int) -> Split:
    """Return the images that `split_train_val` with the same arguments keeps.

    Raises:
        InputError: As `split_train_val`.
    """
    if not train_size:
        return split
    train, val = _divide(split, val_fraction, train_size)
    used = np.sort(np.concatenate([train, val]))
    return replace(_take(split, used), validation=np.isin(used, val))


def _divide(split: Split, val_fraction: float, train_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the training and of the validation part, both ascending."""
    rng = np.random.default_rng(VAL_SEED)
    if split.validation is None:
        train, val = hold_out(split.labels, val_fraction, rng)
    else:
        train, val = np.flatnonzero(~split.validation), np.flatnonzero(split.validation)
    return (_subset(split, train, train_size, rng) if train_size else train), val


def hold_out(
    labels: NDArray[np.int64], fraction: float, rng: np.random.Generator, least_kept: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out a share of every class.

    Args:
        labels: Class of each image, [N] int64.
        fraction: Share to hold out, rounded per class: at least one image.
        rng: Source of the permutations, one per class in ascending order.
        least_kept: Number of images of each class that are never held out.

    Returns:
        The kept and the held-out indices, both ascending int64.

    Raises:
        InputError: A class has fewer than two images.
    """
    kept, held = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise InputError(
                f"class number {label} has 1 image, expected at least 2 to divide", "add images of that class"
            )
        count = min(max(round(len(members) * fraction), 1), len(members) - least_kept)
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def _subset(split: Split, indices: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw exactly ``size`` of the indices, each class in proportion (largest remainder), ascending."""
    labels, total = split.labels, len(indices)
    if size > total:
        raise InputError(
            f"--train-size {size} is more than the {total} training {split.spec.unit}s left after the validation split",
            f"give at most --train-size {total}, or 0 for all",
        )
    classes, counts = np.unique(labels[indices], return_counts=True)
    quotas, remainders = np.divmod(counts * size, total)
    most_wanting = np.argsort(-remainders, kind="stable")[: size - int(quotas.sum())]
    quotas[most_wanting] += 1
    if quotas.min() == 0:
        enough = -(-total // int(counts.min()))
        label = int(classes[quotas.argmin()])
        name = f"the class {split.class_names[label]}" if split.class_names else f"class number {label}"
        raise InputError(
            f"--train-size {size} leaves {name} without a training {split.spec.unit}",
            f"give at least --train-size {enough}, or 0 for all",
        )
    parts = [
        rng.permutation(indices[labels[indices] == label])[:quota] for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(parts))


def _take(split: Split, indices: NDArray[np.int64]) -> Split:
    groups = None if split.groups is None else split.groups[indices]
    images, labels, places = split.images[indices], split.labels[indices], split.dataset_indices[indices]
    return Split(images, labels, split.class_names, places, groups=groups, signal=split.signal)

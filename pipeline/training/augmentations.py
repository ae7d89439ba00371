"""Augmentations of training images: a flip and a shift, and blanked squares, drawn from a hash of (epoch, index).

They do not depend on the seed or on a generator's state, so runs of other seeds and resumed runs see the same images.
Flips and shifts are drawn without replacement: an image repeats one only after it had all, so that few epochs see many
different images, and after as many epochs nearly all logits of the teacher are in the cache.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["augment", "blank_squares", "choose_augmentations", "draw_augmentations", "mirrored", "mixed_bits"]


def choose_augmentations(
    dataset_indices: NDArray[np.int64], *, epoch: int, shift: int, flip: bool
) -> NDArray[np.int64]:
    """Draw an augmentation of each image.

    Args:
        dataset_indices: int64 ``[N]``, the images' indices in the data set.
        epoch: Number of the epoch, from 0.
        shift: Largest shift in pixels, in both axes.
        flip: Whether half of the images are flipped.

    Returns:
        int64 ``[N]``: (flipped * span + row) * span + column, where span is 2 * shift + 1; shifted, then flipped.
    """
    shifts = (2 * shift + 1) ** 2
    return draw_augmentations(dataset_indices, epoch=epoch, count=2 * shifts if flip else shifts)


def draw_augmentations(numbers: NDArray[np.int64], *, epoch: int, count: int) -> NDArray[np.int64]:
    """Draw the number of an augmentation, without replacement: ``count`` epochs have all in random order.

    Args:
        numbers: int64 ``[N]``, of the images or windows. Each has an order of its own.
        epoch: Number of the epoch, from 0.
        count: Number of augmentations.

    Returns:
        int64 ``[N]``, 0 to ``count - 1``.
    """
    done, place = divmod(epoch, count)
    keys = mixed_bits(done, numbers[:, None] * count + np.arange(count))
    return np.argsort(keys, axis=1)[:, place]


def mirrored(numbers: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Return the numbers of the mirror images of augmented images.

    Args:
        numbers: int64 ``[N]``, dataset index * 2 * span² + augmentation, as in `choose_augmentations`; -1: none.
        shift: Largest shift in pixels.

    Returns:
        int64 ``[N]``; -1 stays.
    """
    shifts = (2 * shift + 1) ** 2
    image, chosen = np.divmod(numbers, 2 * shifts)
    return np.where(numbers < 0, numbers, image * 2 * shifts + (chosen + shifts) % (2 * shifts))


def augment(images: Tensor, chosen: NDArray[np.int64], *, shift: int) -> Tensor:
    """Shift each image over black, and flip it.

    Args:
        images: uint8 ``[N, S, S, C]``.
        chosen: int64 ``[N]``, from `choose_augmentations` with the same ``shift``.
        shift: Largest shift in pixels.

    Returns:
        uint8 ``[N, S, S, C]``.
    """
    count, size, device = images.shape[0], images.shape[1], images.device
    flipped, rows, columns = (
        torch.from_numpy(part).to(device) for part in np.unravel_index(chosen, (2, 2 * shift + 1, 2 * shift + 1))
    )
    line = torch.arange(size, device=device)
    source_columns = torch.where(flipped[:, None] == 1, size - 1 - line, line) + columns[:, None]
    source_rows = line + rows[:, None]
    padded = torch.zeros(count, size + 2 * shift, size + 2 * shift, images.shape[3], dtype=torch.uint8, device=device)
    padded[:, shift : shift + size, shift : shift + size] = images
    each = torch.arange(count, device=device)[:, None, None]
    return padded[each, source_rows[:, :, None], source_columns[:, None, :]]


def blank_squares(pixels: Tensor, numbers: NDArray[np.int64], *, epoch: int, side: int) -> Tensor:
    """Make a square of each image black. Its centre is anywhere in the image, so that some squares cross the border.

    T. DeVries and G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout"
    (arXiv:1708.04552), section 3.2.

    Args:
        pixels: float ``[N, C, S, S]``; not changed.
        numbers: int64 ``[N]``, from which the squares are drawn, with the epoch.
        epoch: Number of the epoch, from 0.
        side: Side length of the squares in pixels (0: none).

    Returns:
        Like ``pixels``.
    """
    if not side:
        return pixels
    size, device = pixels.shape[-1], pixels.device
    bits = mixed_bits(~epoch, numbers)  # independent of the flips and shifts, whose epochs are not negative
    line = torch.arange(size, device=device)
    inside = []
    for by in (8, 32):
        first = ((bits >> np.uint64(by)) % np.uint64(size)).astype(np.int64) - side // 2
        offset = line - torch.from_numpy(first).to(device)[:, None]
        inside.append((offset >= 0) & (offset < side))
    rows, columns = inside
    return pixels.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def mixed_bits(epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash (epoch, number) to 64 well-mixed bits with SplitMix64 (Steele et al., OOPSLA 2014)."""
    start = np.uint64(epoch * 0xD1B54A32D192ED03 & (1 << 64) - 1)
    z = start + numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

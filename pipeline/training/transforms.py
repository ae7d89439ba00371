"""Augmentations by torchvision: the levels ``standard`` and ``strong`` of ``--augment``.

The draws depend only on (seed, epoch, place in the epoch), so a resumed training sees the same images. Neighbours in a
batch share one draw: a transform of one small image takes longer than its training step.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["mix_images", "transform_images"]

T = TypeVar("T")
_IMAGES_PER_DRAW = 8


def transform_images(images: Tensor, level: str, *, flip: bool, key: tuple[int, ...]) -> Tensor:
    """Crop, scale, flip, change the colours of and erase a part of each image, in groups of 8 images.

    Args:
        images: uint8 ``[N, S, S, C]``.
        level: ``standard`` or ``strong``.
        flip: Whether half of the groups are flipped. Without it, nothing turns images by more than 9 degrees.
        key: Decides the draws.

    Returns:
        uint8 ``[N, S, S, C]``.
    """
    transform = _transform(level, images.shape[1], flip)
    parts = torch.split(images.permute(0, 3, 1, 2), _IMAGES_PER_DRAW)
    changed = [_drawn(partial(transform, part), (*key, index)) for index, part in enumerate(parts)]
    return torch.cat(changed).permute(0, 2, 3, 1).contiguous()


def mix_images(pixels: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour in the batch, by mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899).

    Args:
        pixels: float32 ``[N, C, S, S]``.
        key: Decides the draws.

    Returns:
        (pixels, float32 ``[N, N]``: the share of each image of the batch in each mixed one).
    """
    count = len(pixels)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=count), v2.CutMix(alpha=1.0, num_classes=count)])
    mixed, shares = _drawn(partial(mix, pixels, torch.arange(count, device=pixels.device)), key)
    return mixed, shares


def _transform(level: str, size: int, flip: bool) -> v2.Transform:
    strong = level == "strong"
    steps: list[v2.Transform] = [v2.RandomResizedCrop(size, scale=(0.35 if strong else 0.6, 1.0), antialias=True)]
    steps += [v2.RandomHorizontalFlip()] if flip else []
    if not strong:
        steps.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2))
    elif flip:
        steps.append(v2.TrivialAugmentWide())
    else:
        steps.append(v2.RandAugment(num_ops=2, magnitude=9))  # the former turns by up to 135 degrees: a 6 becomes a 9
    return v2.Compose([*steps, v2.RandomErasing(p=0.25)])


def _drawn(function: Callable[[], T], key: tuple[int, ...]) -> T:
    """Call a function with PyTorch's generator seeded by a key, and restore the generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        return function()

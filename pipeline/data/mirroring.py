"""Decides whether training may mirror images: not if a mirrored image belongs to another class.

Photographs of objects keep their class. Digits, letters and traffic signs do not, and training on their mirror images
costs accuracy. The decision compares the classes of the nearest neighbours, among the training images, of the images of
a sample and of their mirror images.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kdedge.dataset import Split

__all__ = ["mirrored_keep_class"]

_QUERIES, _NEIGHBOURS = 500, 2000
_NEAR_COPY = 0.5  # distance, relative to that of the mirror image and its nearest neighbour
_SIDE = 16  # side length of the compared images in pixels
_CHUNK = 100  # images that are reduced at a time


def mirrored_keep_class(train: Split) -> bool:
    """Return whether mirrored images resemble their class as much as the original images.

    They do not if mirroring loses the correct neighbour for significantly more queries than it finds it for (McNemar's
    test, three standard errors), and for more than 2 % of the queries. Near copies of a query, such as frames of a
    video, do not count: its mirror image has none. The result is deterministic.

    Args:
        train: Training images; at least two.
    """
    order = np.random.default_rng(0).permutation(len(train))
    count = min(_QUERIES, len(train) // 3)
    queries, neighbours = order[:count], order[count : count + _NEIGHBOURS]
    known, labels = _features(train.images, neighbours), train.labels[neighbours]
    distances, mirrored = (
        torch.cdist(_features(images, queries), known) for images in (train.images, train.images[:, :, ::-1])
    )
    distances[distances < _NEAR_COPY * mirrored.min(1, keepdim=True).values] = math.inf
    right, right_mirrored = (
        labels[found.argmin(1).numpy()] == train.labels[queries] for found in (distances, mirrored)
    )
    lost, found = int((right & ~right_mirrored).sum()), int((right_mirrored & ~right).sum())
    return lost - found <= max(3 * math.sqrt(lost + found), 0.02 * count)


def _features(images: NDArray[np.uint8], chosen: NDArray[np.int64]) -> torch.Tensor:
    """Return reduced pixels without their mean, float32 ``[N, D]``, of some of uint8 images ``[M, S, S, 3]``."""
    parts = []
    for start in range(0, max(1, len(chosen)), _CHUNK):
        pixels = torch.from_numpy(images[chosen[start : start + _CHUNK]]).permute(0, 3, 1, 2).float()
        parts.append(functional.adaptive_avg_pool2d(pixels, min(_SIDE, images.shape[1])).flatten(1))
    small = torch.cat(parts)
    return small - small.mean(1, keepdim=True)

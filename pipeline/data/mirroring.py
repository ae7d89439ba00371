"""Whether images may be mirrored in training: not where a mirrored image belongs to another class.

Photographs of things keep their class. Digits, letters and traffic signs do not, and training on their mirror images
costs accuracy. The nearest neighbour of an image, among the training images, tells the two kinds apart: it is asked for
each image of a sample and for its mirror image.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kdedge.dataset import Split

__all__ = ["mirrored_keep_class"]

_QUERIES, _NEIGHBOURS = 500, 2000
_SIDE = 16  # pixels to which images are reduced


def mirrored_keep_class(train: Split) -> bool:
    """Return whether mirrored images look as much like their class as the images themselves.

    They do not if significantly more queries lose the right neighbour by mirroring than find it (McNemar's test, three
    standard errors), and by more than 2 % of the queries. The same images give the same answer.

    Args:
        train: Training images; at least two.
    """
    order = np.random.default_rng(0).permutation(len(train))
    count = min(_QUERIES, len(train) // 3)
    queries, neighbours = order[:count], order[count : count + _NEIGHBOURS]
    known, labels = _features(train.images[neighbours]), train.labels[neighbours]
    right, right_mirrored = (
        labels[torch.cdist(_features(images), known).argmin(1).numpy()] == train.labels[queries]
        for images in (train.images[queries], train.images[queries][:, :, ::-1])
    )
    lost, found = int((right & ~right_mirrored).sum()), int((right_mirrored & ~right).sum())
    return lost - found <= max(3 * math.sqrt(lost + found), 0.02 * count)


def _features(images: NDArray[np.uint8]) -> torch.Tensor:
    """Return what is compared, float32 ``[N, D]``, of uint8 images ``[N, S, S, 3]``."""
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    small = functional.adaptive_avg_pool2d(pixels, min(_SIDE, images.shape[1])).flatten(1)
    return small - small.mean(1, keepdim=True)

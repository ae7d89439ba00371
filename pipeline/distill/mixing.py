"""Mixed images: each image of a batch with its neighbour, and the teacher's probabilities of both in the same shares.

Mixing after the teacher leaves its logits those of flipped and shifted images, which are in the cache. L. Beyer et al.,
"Knowledge distillation: A good teacher is patient and consistent" (arXiv:2106.05237) show the teacher the mixed image
instead, which takes a pass of the teacher for every batch.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softmax

from kdedge.pipeline.training.batches import Batch

__all__ = ["Mixed", "draw_mixed", "mix_logits"]


class Mixed(NamedTuple):
    """Mixed images of a batch.

    Attributes:
        pixels: float32 ``[B, C, H, W]``.
        shares: float32 ``[B, B]``, the share of each image of the batch in each mixed one; rows sum to 1.
    """

    pixels: Tensor
    shares: Tensor


def draw_mixed(batch: Batch, share: float, key: tuple[int, ...]) -> Mixed | None:
    """Mix a batch with the probability ``share``, as `kdedge.pipeline.training.transforms.mix_images` does.

    Args:
        batch: Its images are not mixed yet.
        share: 0 to 1.
        key: Decides the draws, with the first image of the batch.

    Returns:
        None if the batch stays as it is.
    """
    key = (*key, int(batch.augmentations[0]))
    if np.random.default_rng(key).random() >= share:
        return None
    from kdedge.pipeline.training.transforms import mix_images  # importing it takes a second

    return Mixed(*mix_images(batch.pixels, key))


def mix_logits(logits: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """Return logits whose probabilities at a temperature are those of the images in the shares of ``shares``.

    Args:
        logits: float ``[B, C]`` of the unmixed images.
        shares: float32 ``[B, B]``, see `Mixed`.
        temperature: T > 0.

    Returns:
        float32 ``[B, C]``.
    """
    with torch.autocast(logits.device.type, enabled=False):  # which would multiply matrices in bf16
        mixed = shares @ softmax(logits.float() / temperature, 1)
    return temperature * torch.log(mixed.clamp_min(torch.finfo(torch.float32).tiny))

"""Mixed images of a batch, which the teacher sees as the student does.

L. Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (arXiv:2106.05237): a student that
sees ever new mixed images, and learns what the teacher makes of each, learns more than from the unmixed ones.
"""

import numpy as np

from kdedge.pipeline.training.batches import Batch, class_shares

__all__ = ["mix_batch"]


def mix_batch(batch: Batch, share: float, classes: int, key: tuple[int, ...]) -> Batch:
    """Mix a batch with the probability ``share``, as `kdedge.pipeline.training.transforms.mix_images` does.

    Args:
        batch: Its images are not mixed yet.
        share: 0 to 1.
        classes: Number of classes.
        key: Decides the draws, with the first image of the batch.

    Returns:
        The batch as it was, or with each image mixed with its neighbour; mixed images have the number -1.
    """
    key = (*key, int(batch.augmentations[0]))
    if np.random.default_rng(key).random() >= share:
        return batch
    from kdedge.pipeline.training.transforms import mix_images  # importing it takes a second

    pixels, of_images = mix_images(batch.pixels, key)
    shares = class_shares(batch.labels, of_images, classes)
    return Batch(pixels, shares.argmax(1), np.full_like(batch.augmentations, -1), shares)

"""What the training images decide where the user does not: epochs, images per step, and whether images are mirrored.

The defaults are measured on CIFAR-10's 45,000 training images. A fixed number of epochs gives a small set too few steps
and a large one too many, a fixed number of steps the reverse. Between them, epochs fall with the square root of the
number of images: 1,000 images are seen 6.7 times as often as 45,000 (experiments/LOG.md, section 51).
"""

import dataclasses
import math
from typing import TypeVar

from kdedge.dataset import Split
from kdedge.pipeline.data.mirroring import mirrored_keep_class
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.training.options import TeacherConfig
from kdedge.progress import log

__all__ = ["batch_size", "epochs", "fit_to_images"]

SettingsT = TypeVar("SettingsT", TeacherConfig, DistillConfig)

_REFERENCE_IMAGES = 45_000
_BATCH_SIZE = 128
_LEAST_BATCH_SIZE = 16
_STEPS_PER_EPOCH = 50  # of a small set
_EPOCHS: dict[type, int] = {TeacherConfig: 7, DistillConfig: 20}


def epochs(images: int, at_reference: int) -> int:
    """Return the epochs for a number of training images, of which a set of 45,000 gets ``at_reference``."""
    return max(1, round(at_reference * math.sqrt(_REFERENCE_IMAGES / images)))


def batch_size(images: int) -> int:
    """Return the images per step: 128, or for fewer than 6,400 images a power of two, at least 16."""
    wanted = max(_LEAST_BATCH_SIZE, min(_BATCH_SIZE, images // _STEPS_PER_EPOCH))
    return 1 << (wanted.bit_length() - 1)


def fit_to_images(settings: SettingsT, train: Split, title: str, loaded: bool) -> SettingsT:
    """Return the settings of a training with what they leave open decided by its images, and log that.

    Args:
        settings: Of a teacher or a student.
        train: The training images.
        title: What is trained.
        loaded: Whether the initial weights are loaded from a file.
    """
    images = len(train)
    size = min(settings.batch_size or batch_size(images), images)
    flip = mirrored_keep_class(train) if settings.flip is None else settings.flip
    settings = dataclasses.replace(
        settings,
        epochs=epochs(images, _EPOCHS[type(settings)]) if settings.epochs < 0 else settings.epochs,
        batch_size=size,
        lr=settings.peak_lr(size, loaded=loaded),
        flip=flip,
    )
    log(
        f"{title}: {settings.epochs} epochs of {images // size} steps with {size} images, peak rate {settings.lr:.4g}, "
        f"images are {'' if flip else 'not '}mirrored"
    )
    return settings

"""Defaults that depend on the training images: epochs, images per step, and whether images are mirrored.

The defaults are measured on CIFAR-10's 45,000 training images. A fixed number of epochs means too few steps for a small
set and too many for a large one, a fixed number of steps the reverse. Between them, epochs fall with the cube root of
the number of images: 1,000 images are seen 3.6 times as often as 45,000 (experiments/LOG.md, section 52). A training
ends earlier if its images are learned earlier (`kdedge.pipeline.training.epoch_loop.EpochLoop`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.pipeline.data.mirroring import mirrored_keep_class
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.options import TeacherConfig
from kdedge.progress import log

__all__ = ["batch_size", "epochs", "fit_to_images"]

SettingsT = TypeVar("SettingsT", TeacherConfig, DistillConfig)

_REFERENCE_IMAGES = 45_000
_BATCH_SIZE = 128
_LEAST_BATCH_SIZE = 32
_PIXELS_PER_BATCH = 1 << 21  # 8 images of 512 pixels: 2.4 GB for the training of a ResNet-18 (section 52)
_STEPS_PER_EPOCH = 50  # of a small set
_EPOCHS: dict[type, int] = {TeacherConfig: 7, DistillConfig: 20}


def epochs(images: int, at_reference: int) -> int:
    """Return the epochs for a number of training images, of which a set of 45,000 gets ``at_reference``."""
    return max(1, round(at_reference * math.cbrt(_REFERENCE_IMAGES / images)))


def batch_size(images: int, shape: Sequence[int]) -> int:
    """Return the images per step, a power of two.

    It is 128, for fewer than 6,400 images less, at least 32. Large images are limited by their memory: 2 million pixels
    per step.

    Args:
        images: Number of training images.
        shape: Shape of one, channels last.
    """
    wanted = max(_LEAST_BATCH_SIZE, min(_BATCH_SIZE, images // _STEPS_PER_EPOCH))
    fitting = max(1, min(wanted, _PIXELS_PER_BATCH // math.prod(shape[:-1])))
    return 1 << (fitting.bit_length() - 1)


def fit_to_images(settings: SettingsT, train: Split, title: str, loaded: bool, resized: int = 0) -> SettingsT:
    """Return the settings of a training with defaults from its images, and log them.

    Args:
        settings: Settings of a teacher or a student.
        train: The training images.
        title: Name of the training, for the log.
        loaded: Whether the initial weights are loaded from a file.
        resized: Side length in pixels to which the network resizes the images (0: it does not).

    Raises:
        InputError: A step has one image, or several processes cannot share its images equally.
    """
    images = len(train)
    shape = (resized, resized, 3) if resized else train.spec.shape
    size = min(settings.batch_size or batch_size(images, shape), images)
    part = distributed.share(size)
    if part.stop - part.start == 1:
        raise InputError(
            f"{title}: a step with 1 {train.spec.unit} per process has no variance for batch norms",
            "set --teacher-batch-size and --distill-batch-size to 2 or more per process",
        )
    flip = settings.augment != "none" and not train.signal
    flip = flip and (mirrored_keep_class(train) if settings.flip is None else settings.flip)
    settings = dataclasses.replace(
        settings,
        epochs=epochs(images, _EPOCHS[type(settings)]) if settings.epochs < 0 else settings.epochs,
        batch_size=size,
        lr=settings.peak_lr(size, loaded=loaded),
        flip=flip,
    )
    mirrored = "" if train.signal else f", images are {'' if flip else 'not '}mirrored"
    epoch = "epoch" if settings.epochs == 1 else "epochs"
    log(
        f"{title}: {settings.epochs} {epoch} of {images // size} steps with {size} {train.spec.unit}s, "
        f"peak rate {settings.lr:.4g}, {settings.augment} augmentation{mirrored}"
    )
    return settings

"""Run deployed models over any number of images in bounded memory. Needs numpy and onnxruntime only."""

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.runtime import Model
from pipeline.runtime import images_at_once

__all__ = ["batch_size", "run_model"]


def run_model(model: Model, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the logits of all images.

    Args:
        model: From `benchmarks.runtime.open_model`.
        pixels: ``[N, S, S, 3] uint8`` RGB, N at least 1.

    Returns:
        Logits, ``[N, C] float32``.
    """
    batch = batch_size(model.image_size)
    parts: list[Any] = [model.logits(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    return np.concatenate(parts)


def batch_size(image_size: int) -> int:
    """Return how many images of side ``image_size`` pixels go into a batch, so that activations stay small."""
    return images_at_once(image_size, 64, 32)

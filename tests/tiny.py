"""A tiny data set of class folders that a network learns in seconds, and the options that make every stage tiny."""

from pathlib import Path

import numpy as np
from PIL import Image

OPTIONS = {
    "--image-size": "16",
    "--val-fraction": "0.2",
    "--teacher": "tiny_resnet",
    "--teacher-stem": "cifar-pool",
    "--teacher-weights": "none",
    "--teacher-epochs": "2",
    "--teacher-batch-size": "16",
    "--teacher-lr": "0.02",
    "--student": "lite-xs",
    "--distill-epochs": "3",
    "--distill-batch-size": "16",
    "--lr": "0.05",
    "--scan-batches": "2",
    "--calibration-images": "32",
    "--latency-seconds": "0.1",
    "--latency-batches": "1",
    "--device": "cpu",
    "--threads": "1",
    "--precision": "fp32",
}
TINY = [*(part for option in OPTIONS.items() for part in option), "--no-compare-formats"]


def make_folder(root: Path, train: int = 40, test: int = 15, size: int = 16) -> Path:
    """Write noisy images of three hues, ``train`` and ``test`` per class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 140, (size, size, 3))
                pixels[..., 2 - label] += rng.integers(40, 110)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")
    return root

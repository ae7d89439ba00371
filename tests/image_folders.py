"""Class folders of small images, for the tests of data sets."""

from pathlib import Path

import pytest
from PIL import Image

from kdedge.dataset import Dataset
from kdedge.errors import InputError
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset


def save(path: Path, colour: "int | tuple[int, ...]" = (200, 10, 10), size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_tree(root: Path, counts: dict[str, int]) -> Path:
    """Class folders with images that all differ: the blue channel counts them."""
    number = 0
    for name, count in counts.items():
        for index in range(count):
            save(root / name / f"{index:03d}.png", (100, 50, number))
            number += 1
    return root


def open_folder(root: Path, size: int = 16, test_fraction: float = 0.2) -> Dataset:
    return open_dataset(DataConfig(source=f"folder:{root}", image_size=size, test_fraction=test_fraction))


def blues(dataset: Dataset) -> tuple[list[int], list[int]]:
    return tuple(split.images[:, 0, 0, 2].tolist() for split in (dataset.train(), dataset.test()))  # type: ignore


def failure(root: Path, match: str) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        open_folder(root)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value

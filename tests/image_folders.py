"""Class folders of small images, for the tests of data sets."""

from pathlib import Path

import numpy as np
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


def pictures(folder: Path) -> list[Path]:
    """Write images of several modes and sizes."""
    folder.mkdir()
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgba.save(folder / "a.png")
    rgba.convert("L").save(folder / "b.png")
    rgba.convert("RGB").save(folder / "c.jpg")
    rgba.convert("P").save(folder / "d.gif")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "e.png")
    Image.fromarray(pixels[:16, :16, :3]).save(folder / "f.png")
    return sorted(folder.iterdir())


def broken_arrays(folder: Path) -> list[Path]:
    """Write files that end in .npy and hold no images."""
    for name, shape in (("none", (0, 16, 16, 3)), ("huge", (10**12, 16, 16, 3)), ("absurd", (2**62, 16, 16, 3))):
        with (folder / f"{name}.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
    np.savez(folder / "archive.npz", np.zeros((16, 16, 3), np.uint8))
    (folder / "archive.npz").rename(folder / "archive.npy")
    (folder / "cut.npy").write_bytes((folder / "archive.npy").read_bytes()[:50])
    return sorted(folder.glob("*.npy"))

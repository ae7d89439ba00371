"""Metadata never veto pixels, and damaged images end in one kind of error."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz_images import exif_block, fuzz
from PIL import Image

from kdedge import images
from kdedge.export.bundle import standalone
from kdedge.images import read_image

PIXELS = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def saved(format_: str, exif: bytes) -> bytes:
    buffer = io.BytesIO()
    options = {"lossless": True} if format_ == "WEBP" else {}
    Image.fromarray(PIXELS).save(buffer, format_, **options)
    data = buffer.getvalue()
    if format_ == "JPEG":  # by hand: Pillow checks what it writes
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format_, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_read_among_damaged_tags(tmp_path: Path, format_: str) -> None:
    path, rng = tmp_path / "image", np.random.default_rng(2)
    path.write_bytes(saved(format_, exif_block(rng, 1)))
    stored = read_image(path, 8)
    turned = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.swapaxes(0, 1)]
    turned += [np.rot90(stored, -1), stored[::-1, ::-1].swapaxes(0, 1), np.rot90(stored)]
    for number in range(80):
        path.write_bytes(saved(format_, exif_block(rng, number % 8 + 1)))
        assert np.array_equal(read_image(path, 8), turned[number % 8])
        assert np.array_equal(standalone.decode(path, 8), turned[number % 8])


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHLHH", 0x0112, 3, 1, 9, 0),
        b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHLHH", 0x0112, 2, 1, 6, 0),
    ],
)
def test_damaged_metadata_are_ignored_under_one_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, format_: str, exif: bytes
) -> None:
    images._metadata_warned.clear()
    (tmp_path / "good").write_bytes(saved(format_, exif_block(np.random.default_rng(0), 1)))
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(saved(format_, exif))
        assert np.array_equal(read_image(tmp_path / name, 8), read_image(tmp_path / "good", 8))
        assert np.array_equal(standalone.decode(tmp_path / name, 8), read_image(tmp_path / "good", 8))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: the EXIF metadata of {tmp_path / 'first'} are damaged and ignored")


def test_warnings_of_pillow_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(PIXELS).save(path, tiffinfo={305: "a program"})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<HHL", 305, 2, 10), struct.pack("<HHL", 305, 2, 1 << 20)))
    assert path.read_bytes() != data
    code = "import sys; from pathlib import Path; from kdedge.images import read_image;read_image(Path(sys.argv[1]), 8)"
    command = [sys.executable, "-W", "always", "-c", code, str(path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stderr == ""


def test_orientation_of_tiff_survives_damaged_tags(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(PIXELS).save(path, tiffinfo={274: 6, 34665: 8})
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HH", 34665, 4))
    data[at : at + 12] = struct.pack("<HHLL", 34665, 4, 3, 0xFFFFFFF0)
    path.write_bytes(data)
    assert np.array_equal(read_image(path, 8), np.rot90(PIXELS, -1))
    assert np.array_equal(standalone.decode(path, 8), np.rot90(PIXELS, -1))


@pytest.mark.filterwarnings("ignore")  # pytest undoes the filter that the reader sets
def test_fuzzed_images_end_in_pixels_or_in_one_kind_of_error(tmp_path: Path) -> None:
    """More: `python tests/fuzz_images.py 100000`."""
    found = fuzz(400, tmp_path)
    assert min(found["read"], found["refused"]) > 50

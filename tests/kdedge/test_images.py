"""Image files of every kind: what becomes of their pixels, and which are refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_folders import failure, make_tree, open_folder, save
from PIL import Image

from kdedge import images
from kdedge.errors import InputError
from kdedge.export.bundle import standalone
from kdedge.images import read_image
from kdedge.preprocessing import RESIZE_MODES


@pytest.mark.parametrize("part", ["train", "test"])
def test_unreadable_images_are_found_at_once_in_both_parts(tmp_path: Path, part: str) -> None:
    for name in ("train", "test"):
        make_tree(tmp_path / name, {"a": 3, "b": 3})
    bad = tmp_path / part / "b" / "bad.png"
    bad.write_text("I am no image")
    failure(tmp_path, f"cannot read the image .*{part}.b.bad.png: not an image in a known format")
    bad.write_bytes(b"")
    failure(tmp_path, "bad.png: not an image")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(bad)
    bad.write_bytes(bad.read_bytes()[:-2000])
    failure(tmp_path, "cannot read the image .*bad.png: ")


def test_encapsulated_postscript_never_reaches_ghostscript(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 3, "b": 3})
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "trap.png", "EPS")
    failure(tmp_path, "trap.png: not an image in a known format")


def test_truncated_jpeg_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    path = make_tree(tmp_path, {"a": 3, "b": 3}) / "a" / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    dataset = open_folder(tmp_path)
    with pytest.raises(InputError, match=r"cannot read the image .*half.jpg: .*truncated") as caught:
        dataset.train(), dataset.test()
    assert caught.value.exit_code == 2


def test_a_truncated_test_image_is_found_before_it_is_needed(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", {"a": 3, "b": 3})
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    path = tmp_path / "test" / "a" / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    assert len(open_folder(tmp_path).test_sha256()) == 64
    path.write_bytes(whole[:2000])
    dataset = open_folder(tmp_path)
    dataset.train_sha256()
    with pytest.raises(InputError, match=r"cannot read the image .*half.jpg: .*truncated"):
        dataset.test_sha256()


def test_a_large_image_is_read_without_a_warning(tmp_path: Path) -> None:
    save(tmp_path / "large.png", size=(200, 100))
    code = (
        "import sys; from pathlib import Path; from kdedge.images import Image, check_image, read_image;"
        "Image.MAX_IMAGE_PIXELS = 15_000; path = Path(sys.argv[1]); check_image(path); read_image(path, 16)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stderr == ""


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, {"a": 3, "b": 3})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    failure(tmp_path, "cannot read the image .*decompression bomb")


def decoded(path: Path, image: Image.Image, **options: object) -> list[int]:
    """Save an image and return the pixel in the middle as kdedge reads it."""
    image.save(path, **options)
    pixels = read_image(path, 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    return [int(value) for value in pixels[8, 8]]


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    png, tif, size = tmp_path / "x.png", tmp_path / "x.tif", (20, 10)
    red = Image.new("RGB", size, (255, 0, 0))
    assert decoded(png, red) == [255, 0, 0]
    assert decoded(png, Image.new("L", size, 77)) == [77, 77, 77]
    assert decoded(png, Image.new("1", size, 1)) == [255, 255, 255]
    assert decoded(png, red.quantize(8)) == [255, 0, 0]
    assert decoded(png, Image.new("RGBA", size, (0, 0, 255, 255))) == [0, 0, 255]
    # Transparency is composited on white, however the format stores it.
    assert decoded(png, Image.new("RGBA", size, (0, 0, 255, 0))) == [255, 255, 255]
    assert decoded(png, Image.new("RGBA", size, (0, 0, 255, 51))) == [204, 204, 255]
    assert decoded(png, Image.new("LA", size, (0, 0))) == [255, 255, 255]
    assert decoded(png, red.quantize(8), transparency=0) == [255, 255, 255]
    assert decoded(png, red, transparency=(255, 0, 0)) == [255, 255, 255]
    assert decoded(tmp_path / "x.gif", red) == [255, 0, 0]
    # 16 bits keep the high byte.
    grey16 = Image.fromarray(np.full((10, 20), 0x1234, np.uint16))
    assert decoded(png, grey16) == [0x12] * 3
    assert decoded(tif, grey16) == [0x12] * 3
    assert decoded(tif, Image.fromarray(np.full((10, 20), 0x1234, np.int32))) == [0x12] * 3
    # Values that need 8 bits only are not made black.
    for dtype in (np.uint16, np.int32):
        dark = Image.fromarray(np.array([[0, 255], [0x12, 7]], dtype).repeat(8, 0).repeat(8, 1))
        assert decoded(tif, dark) == [7] * 3
        if dtype is np.uint16:
            assert decoded(png, dark) == [7] * 3
    cmyk = decoded(tmp_path / "x.jpg", Image.new("CMYK", size, (0, 255, 255, 0)), quality=95)
    assert np.abs(np.array(cmyk) - [255, 0, 0]).max() < 5


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((9, 9), 0.5, np.float32), "floating-point pixels"),
        (np.full((9, 9), 1 << 20, np.int32), "32-bit pixels"),
        (np.full((9, 9), -1, np.int32), "32-bit pixels"),
    ],
)
def test_pixels_without_a_known_range(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=f"cannot read the image .*x.tif: {reason}"):
        read_image(tmp_path / "x.tif", 16)


def test_a_large_jpeg_is_read_at_a_fraction_of_its_size_and_other_large_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = np.linspace(0, 255, 64 * 96, dtype=np.uint8).reshape(64, 96)
    for name in ("large.png", "large.jpg"):
        Image.fromarray(gradient).save(tmp_path / name)
    whole, whole_alone = (read(tmp_path / "large.jpg", 16) for read in (read_image, standalone.decode))
    monkeypatch.setattr(images, "_MAX_PIXELS", 64 * 96 // 4 - 1)  # a quarter of the side is needed
    monkeypatch.setattr(standalone, "MAX_PIXELS", 64 * 96 // 4 - 1)
    for read, refusal in ((read_image, InputError), (standalone.decode, ValueError)):
        part = read(tmp_path / "large.jpg", 16)
        assert 0 < np.abs(part.astype(int) - whole).max() < 16
        with pytest.raises(refusal, match="0 megapixels"):
            read(tmp_path / "large.png", 16)
    assert np.array_equal(read_image(tmp_path / "large.jpg", 16), standalone.decode(tmp_path / "large.jpg", 16))
    assert np.array_equal(whole, whole_alone)
    with pytest.raises(InputError, match=r"large\.png: 0 megapixels, the limit is 0 \(JPEG: none\)"):
        images.check_image(tmp_path / "large.png")


@pytest.mark.parametrize("name", ["x.jfif", "x.jpe", "x.JFIF", "x.avif"])
def test_other_names_of_known_formats(tmp_path: Path, name: str) -> None:
    if name == "x.avif" and not images._AVIF:
        pytest.skip("this Pillow does not read AVIF")
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "image", "AVIF" if name == "x.avif" else "JPEG")
    path = (tmp_path / "image").rename(tmp_path / name)
    assert path.suffix.lower() in images.EXTENSIONS
    assert np.abs(read_image(path, 8).astype(int) - [200, 0, 0]).max() < 4
    assert np.array_equal(read_image(path, 8), standalone.decode(path, 8))


HEIF_PLUGIN = """
from PIL import Image, ImageFile

class Heif(ImageFile.ImageFile):
    format = "HEIF"
    def _open(self):
        self._size, self._mode, self.tile = (2, 2), "L", [("raw", (0, 0, 2, 2), 4, "L")]

Image.register_open("HEIF", Heif, lambda prefix: prefix.startswith(b"heic"))
"""


def test_heic_is_read_where_pillow_has_its_plugin(tmp_path: Path) -> None:
    package = tmp_path / "pillow_heif"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "HeifImagePlugin.py").write_text(HEIF_PLUGIN)
    (tmp_path / "photo.heic").write_bytes(b"heic\x10\x20\x30\x40")
    for module, read in (("kdedge.images", "read_image"), ("kdedge.export.bundle.standalone", "decode")):
        script = f"""import sys
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from {module} import {read} as read
print(read(Path({str(tmp_path / "photo.heic")!r}), 2)[..., 0].tolist())"""
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert result.stdout == "[[16, 32], [48, 64]]\n", result.stderr


def test_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90° clockwise: the top becomes the right.
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png", 16)
    assert (upright[:, 8:] == 255).all()
    assert (upright[:, :8] == 0).all()


def test_any_size_is_squeezed_bilinearly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 23, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    expected = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BILINEAR)
    assert (read_image(tmp_path / "x.png", 24) == np.asarray(expected)).all()


@pytest.mark.parametrize("turned", [False, True])
def test_crop_takes_the_middle_and_pad_repeats_the_edges(tmp_path: Path, turned: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 23, 3), np.uint8)
    Image.fromarray(pixels.swapaxes(0, 1) if turned else pixels).save(tmp_path / "x.png")

    def read(mode: str) -> np.ndarray:
        found = read_image(tmp_path / "x.png", 24, mode)
        assert np.array_equal(found, standalone.decode(tmp_path / "x.png", 24, mode))
        return found.swapaxes(0, 1) if turned else found

    def resized(part: np.ndarray, width: int, height: int) -> np.ndarray:
        image = Image.fromarray(part.swapaxes(0, 1) if turned else part)
        found = image.resize((height, width) if turned else (width, height), Image.Resampling.BILINEAR)
        return np.asarray(found).swapaxes(0, 1) if turned else np.asarray(found)

    assert np.array_equal(read("crop"), resized(pixels[13:36], 24, 24))
    small = resized(pixels, 11, 24)  # 23 of 50 columns are 11.04 of 24
    assert np.array_equal(read("pad"), np.concatenate([small[:, :1]] * 6 + [small] + [small[:, -1:]] * 7, axis=1))


def test_a_line_of_pixels_is_padded_and_a_square_is_the_same_in_every_mode(tmp_path: Path) -> None:
    line = np.random.default_rng(1).integers(0, 256, (1, 400, 3), np.uint8)
    Image.fromarray(line).save(tmp_path / "line.png")
    padded = read_image(tmp_path / "line.png", 8, "pad")
    assert (padded == padded[:1]).all()
    Image.fromarray(np.repeat(line, 400, 0)).save(tmp_path / "square.png")
    squeezed, *others = (read_image(tmp_path / "square.png", 16, mode) for mode in RESIZE_MODES)
    assert all(np.array_equal(squeezed, other) for other in others)

"""Convert image files to RGB pixels of one size.

Every conversion follows the same rules: the EXIF orientation is applied; transparency is composited on white; grey,
palette and CMYK become RGB; 16-bit pixels keep the high byte; an antialiased resize makes the image square, see
`kdedge.resizing`.
"""

import logging
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from kdedge.errors import InputError
from kdedge.progress import warn
from kdedge.resizing import resize_image
from kdedge.stored_image import ImageSource

__all__ = [
    "EXTENSIONS",
    "HARMLESS",
    "Overview",
    "UnreadableImageError",
    "check_image",
    "check_pixels",
    "convert_image",
    "image_of",
    "is_grey",
    "overview",
    "overview_pixels",
    "read_image",
    "unreadable",
]

# Pillow reads AVIF from version 11.3 on, if built with it.
_AVIF = find_spec("PIL._avif") is not None
_HEIF = find_spec("pillow_heif") is not None
if _HEIF:
    import_module("pillow_heif.HeifImagePlugin")  # registers itself with Pillow

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
    | ({".avif"} if _AVIF else set())
    | ({".heic", ".heif"} if _HEIF else set())
)

# Files next to images that are not images; other files that are left out cause a warning.
HARMLESS = frozenset({
    ".txt", ".md", ".rst", ".html", ".htm", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".log", ".db", ".lnk", ".url", ".py", ".sh",
})  # fmt: skip

# A renamed file never reaches decoders that run other programs (EPS calls Ghostscript).
_FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
    *(["AVIF"] if _AVIF else []),
    *(["HEIF"] if _HEIF else []),
)

# 400 MB as Pillow stores them, three times as much with transparency. A larger JPEG is decoded at a half, a quarter or
# an eighth of its side; any other larger image is refused.
_MAX_PIXELS = 100_000_000
# Larger images are decoded one at a time, whatever the number of threads.
_LARGE_PIXELS = 16_000_000
_large = threading.Lock()

# Pillow's warnings lack the name of the file, and every relevant problem is an error. Threads share the filters, so
# they are set once for the process.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

_ORIENTATION = 0x0112
# For the EXIF orientations 2 to 8.
_UPRIGHT = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_metadata_warned = threading.Event()


class UnreadableImageError(InputError):
    """A file cannot be used as an image.

    Attributes:
        path: The file.
        reason: The reason, without the path.
    """

    def __init__(self, path: ImageSource, reason: str) -> None:
        super().__init__(f"cannot read the image {path}: {reason}", "replace or remove that file")
        self.path, self.reason = path, reason


def unreadable(errors: Sequence[UnreadableImageError]) -> InputError:
    """Return one error for one or more files that cannot be read; it names the first ten."""
    if len(errors) == 1:
        return errors[0]
    named = "; ".join(f"{error.path}: {error.reason}" for error in errors[:10])
    return InputError(
        f"cannot read the image {named}{'; …' if len(errors) > 10 else ''} ({len(errors)} images in all)",
        "replace or remove these files",
    )


def check_image(path: ImageSource) -> None:
    """Check the header (for PNG: every checksum) of an image file without decoding it.

    Raises:
        UnreadableImageError: The file is missing, unreadable, too large or not an image of a known format.
    """
    with _opened(path) as image:
        image.verify()


def check_pixels(path: ImageSource) -> None:
    """Check that `read_image` can read a file.

    Raises:
        UnreadableImageError: As `read_image`.
    """
    with _opened(path) as image, _turn(image):
        image.draft(None, (1, 1))  # JPEG only: the whole file is decoded, but to an eighth of its side
        _to_rgb(image, path)


def is_grey(path: ImageSource) -> bool:
    """Return whether red, green and blue are equal in every pixel of an image file.

    Raises:
        UnreadableImageError: As `read_image`.
    """
    with _opened(path) as image, _turn(image):
        if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
            return True
        red, green, blue = (band.tobytes() for band in _to_rgb(image, path).split())
        return red == green == blue


@dataclass(frozen=True, eq=False)
class Overview:
    """Contents of an image file.

    Attributes:
        size: Width and height in pixels.
        mode: Pillow's name of the pixel format, such as ``L`` (grey) or ``RGB``.
        transparent: Whether it has transparency.
        several_frames: Whether it has more frames or pages than the first, which is used.
        thumbnail: The picture as RGB, ``[height, width, 3]`` uint8.
    """

    size: tuple[int, int]
    mode: str
    transparent: bool
    several_frames: bool
    thumbnail: NDArray[np.uint8]


def overview(path: ImageSource, size: tuple[int, int]) -> Overview:
    """Decode an image file, a large JPEG to a fraction of its side, and return its contents.

    Args:
        path: The file.
        size: Width and height of the thumbnail.

    Raises:
        UnreadableImageError: As `read_image`.
    """
    with _opened(path) as image, _turn(image):
        seen = (image.size, image.mode, image.has_transparency_data, _several_frames(image))
        image.draft(None, (4 * size[0], 4 * size[1]))
        return Overview(*seen, _thumbnail(_to_rgb(image, path), size))


def overview_pixels(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Overview:
    """Return the contents of a decoded image, see `overview` and `image_of`."""
    image = image_of(pixels)
    return Overview(image.size, image.mode, False, False, _thumbnail(image.convert("RGB"), size))


def _several_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame, which is not used
        return True


def _thumbnail(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def read_image(path: Path, size: int, mode: str = "squeeze") -> NDArray[np.uint8]:
    """Decode an image file and resize it.

    Args:
        path: The file.
        size: Side length S of the result in pixels.
        mode: As of `kdedge.resizing.resize_image`.

    Returns:
        Pixels, [S, S, 3] uint8 RGB.

    Raises:
        UnreadableImageError: The file is missing, truncated, damaged, too large or not an image of a known format.
    """
    return convert_image(path, lambda image: resize_image(image, size, mode))


def convert_image(path: ImageSource, convert: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Decode an image file and convert it, upright and in RGB, to pixels.

    Raises:
        UnreadableImageError: As `read_image`.
    """
    with _opened(path) as image, _turn(image):
        return convert(_to_rgb(image, path))


def image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return decoded pixels, uint8 [H, W] or [H, W, 1] grey or [H, W, 3] RGB, as an image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


@contextmanager
def _opened(path: ImageSource) -> Iterator[Image.Image]:
    """Open an image file without decoding it; turn every error in the block into an `UnreadableImageError`."""
    try:
        with _open(path) as image:
            width, height = image.size
            factor = next((factor for factor in (1, 2, 4, 8) if width * height <= _MAX_PIXELS * factor**2), 8)
            if factor > 1 and not image.draft(None, (width // factor, height // factor)):
                raise ValueError(
                    f"{width * height / 1e6:.0f} megapixels, the limit is {_MAX_PIXELS / 1e6:.0f} (JPEG: none)"
                )
            yield image
    except UnidentifiedImageError as error:
        raise UnreadableImageError(path, f"not an image in a known format ({', '.join(_FORMATS)})") from error
    except Exception as error:  # decoders raise almost anything for damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImageError(path, " ".join(reason.split())) from error


class _Jpeg(JpegImageFile):
    """A JPEG whose damaged EXIF block cannot fail its opening, in which Pillow reads the resolution."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def _open(path: ImageSource) -> Image.Image:
    with path.open("rb") as file:
        jpeg = file.read(3) == b"\xff\xd8\xff"
    target = path if isinstance(path, Path) else path.open("rb")
    return _Jpeg(target) if jpeg else Image.open(target, formats=_FORMATS)


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    """Return a lock for large images, so that they are decoded one at a time."""
    return _large if image.size[0] * image.size[1] > _LARGE_PIXELS else nullcontext()


def _to_rgb(image: Image.Image, path: ImageSource) -> Image.Image:
    """Return an image of any mode as upright 8-bit RGB."""
    image = _upright(image, path)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range, expected 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise ValueError(f"32-bit pixels from {low} to {high} have no known range, expected 0 to 255 or 0 to 65535")
        # Pillow's own conversion clips at 255, which turns 16-bit images white. Values of 8 bits are kept: their
        # high byte is 0.
        image = Image.fromarray((values >> (8 if high > 0xFF else 0)).astype(np.uint8))
    if image.has_transparency_data:
        overlay = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), overlay)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image, path: ImageSource) -> Image.Image:
    """Decode an image and apply its EXIF orientation; ignore all other metadata."""
    tags = getattr(image, "tag_v2", None)  # of TIFF; decoding removes them
    image.getexif = Image.Exif  # type: ignore[method-assign]  # decoding TIFF parses all metadata and fails on damage
    try:
        orientation = 1 if tags is None else int(tags.get(_ORIENTATION, 1))
    except Exception:
        orientation = 0
    image.load()
    if tags is None:
        orientation = _orientation(image.info)
    if orientation == 0 and not _metadata_warned.is_set():
        _metadata_warned.set()
        warn(f"the EXIF metadata of {path} are damaged and ignored; further such files are not reported")
    return image.transpose(_UPRIGHT[orientation - 2]) if 2 <= orientation <= 8 else image


def _orientation(info: dict[Any, Any]) -> int:
    """Return the orientation of an image from its EXIF block: 1 to 8, 1 if none, 0 if the block is damaged."""
    try:
        # ImageMagick writes the block as hexadecimal text into a PNG.
        exif = info.get("exif") or bytes.fromhex("".join(info.get("Raw profile type exif", "").split("\n")[3:]))
        if not exif:
            return 1
        while exif.startswith(b"Exif\0\0"):
            exif = exif[6:]
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (first,) = struct.unpack_from(f"{order}L", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHLH", exif, entry)
            if tag == _ORIENTATION:
                return int(value) if kind == 3 and 1 <= value <= 8 else 0
    except (KeyError, ValueError, struct.error):
        return 0
    return 1

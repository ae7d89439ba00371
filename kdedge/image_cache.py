"""Decoded images: in memory if they are small, otherwise in a memory-mapped file of the cache.

A file is one part of a data set, uint8 ``[N, S, S, C]`` in NumPy's format, named by a hash of images and preprocessing.
A second file has the CRC-32 of every block of images. A block without the correct CRC is decoded: all at first, the
missing ones after a kill, the damaged ones after damage.

    images = decoded_images(count, size, key, decode, "reading images")    # an ndarray either way
"""

import hashlib
import io
import math
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from kdedge.errors import StageError
from kdedge.files import cache_dir, disk_errors
from kdedge.image_memory import empty_images
from kdedge.progress import log, warn
from kdedge.resizing import resize_image
from kdedge.thread_pool import BLOCK, blocks, for_blocks, for_each

__all__ = ["IN_MEMORY", "PLACE", "decoded_images", "locked", "require_space", "resize_images"]

IN_MEMORY = 256 << 20
"""Bytes of decoded images up to which they stay in memory."""

PLACE = "set KDEDGE_CACHE to a folder on another disk"

_VERSION = 1  # raised whenever the same key would have other pixels


def decoded_images(
    count: int,
    size: int,
    key: Callable[[], str],
    decode: Callable[[int], NDArray[np.uint8]],
    title: str,
    *,
    channels: int = 3,
) -> NDArray[np.uint8]:
    """Decode images of one size, with progress, unless the cache has them.

    Args:
        count: Number of images N.
        size: Side length S of the images in pixels.
        key: Returns a text that decides the pixels of all images.
        decode: Returns the pixels of an image by its index; it is called on several threads.
        title: Text in front of the progress bar.
        channels: Channels C of the images.

    Returns:
        uint8 ``[N, S, S, C]``; a read-only memory map above `IN_MEMORY`.

    Raises:
        InputError: The images do not fit into memory, or ``decode`` raises it.
        StageError: The cache has too little space or cannot be written.
    """
    shape = (count, size, size, channels)
    if math.prod(shape) <= IN_MEMORY:
        images = empty_images(count, size, channels)

        def fill(index: int) -> None:
            images[index] = decode(index)

        for_each(count, fill, title)
        return images
    name = hashlib.sha256(repr((_VERSION, PIL.__version__, shape, key())).encode()).hexdigest()[:32]
    path = cache_dir() / "images" / f"{name}.npy"
    with disk_errors(path, PLACE), locked(path):
        _complete(path, shape, decode, title)
        mapped: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")
        return mapped


def _complete(
    path: Path, shape: tuple[int, int, int, int], decode: Callable[[int], NDArray[np.uint8]], title: str
) -> None:
    """Write the blocks of a file that are missing or damaged."""
    spans, image_bytes, using = blocks(shape[0]), math.prod(shape[1:]), threading.Lock()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start, sums_path = header.tell(), path.with_suffix(".crc32")
    for one in (path, sums_path):
        one.touch()
    with path.open("r+b") as file, sums_path.open("r+b") as sums_file:
        file.write(header.getvalue())
        file.truncate(start + shape[0] * image_bytes)
        # 1 + CRC-32 of each block; 0: not written.
        sums = np.frombuffer(sums_file.read(8 * len(spans)).ljust(8 * len(spans), b"\0"), "<i8")
        intact = np.zeros(len(spans), bool)

        def check(span: range) -> None:
            with using:
                file.seek(start + span.start * image_bytes)
                data = file.read(len(span) * image_bytes)
            intact[_number(span)] = sums[_number(span)] == 1 + zlib.crc32(data)

        def write(span: range) -> None:
            pixels = np.stack([decode(index) for index in span])
            total = np.array(1 + zlib.crc32(pixels.data), "<i8")
            with using:
                # In this order: a block with a sum is complete.
                for target, place, data in (
                    (file, start + span.start * image_bytes, pixels.data),
                    (sums_file, total.nbytes * _number(span), total.data),
                ):
                    target.seek(place)
                    target.write(data)
                    target.flush()

        if written := [span for span in spans if sums[_number(span)]]:
            for_blocks(written, check, "checking decoded images")
        if damaged := len(written) - int(np.count_nonzero(intact)):
            warn(f"{path} is damaged: decoding {damaged} of {len(spans)} blocks again")
        if missing := [span for span in spans if not intact[_number(span)]]:
            what = f"{shape[0]:,} images of {shape[1]} x {shape[2]} pixels"
            require_space(path.parent, sum(map(len, missing)) * image_bytes, f"{what} need")
            gb = f"{shape[0] * image_bytes / 1e9:.1f} GB"
            kept = f", {100 * intact.mean():.0f} % are already there" if intact.any() else ""
            log(f"decoding {what} into {path} ({gb}{kept}; you may delete it after the run)")
            for_blocks(missing, write, title)


def _number(block: range) -> int:
    """Return the number of a block of `kdedge.thread_pool.blocks`."""
    return block.start // BLOCK


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that a folder of the cache has space.

    Raises:
        StageError: It has too little.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StageError(
            f"{what} {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free",
            f"delete files there, {PLACE}, or use a smaller --image-size or --train-size",
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file of the cache; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"waiting for another process that writes {path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def resize_images(images: NDArray[np.uint8], size: int, mode: str) -> NDArray[np.uint8]:
    """Resize decoded square images as `kdedge.images.read_image` would.

    Args:
        images: [N, H, H, 3] uint8 RGB.
        size: Side length S of the result in pixels.
        mode: As of `kdedge.resizing.resize_image`.

    Returns:
        [N, S, S, 3] uint8 RGB as of `decoded_images`; ``images`` itself if they are those pixels.

    Raises:
        InputError: The result needs more memory than is available.
        StageError: As `decoded_images`.
    """
    if images.shape[1:3] == (size, size) and not mode.startswith("crop-"):
        return images
    return decoded_images(
        len(images),
        size,
        lambda: hashlib.sha256(mode.encode() + images.tobytes()).hexdigest(),
        lambda index: resize_image(Image.fromarray(images[index]), size, mode),
        "resizing images",
    )

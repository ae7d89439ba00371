"""A frozen teacher whose logits of augmented images are computed once and cached in a file that all runs share.

A flip and a shift are drawn from (image, epoch), so another run has the same augmented images. Logits are rounded to
fp16 before use, also when they were just computed, so that a run produces the same bits with an empty and
with a full cache. For the same reason the teacher sees as many images per call as the student per step, and the cache
is of this number: the kernels that a library chooses, and with them the last bits, depend on the batch size.

The teacher's maps for hints are too large for a cache. With cached logits, the teacher runs only to the deepest block
with hints.

An entry is the fp16 logits of an augmented image and a CRC-32 over them and its number. An entry torn by a crash, or by
two processes that write in parallel, has a wrong checksum and counts as missing, so no lock is needed. Holes of the
sparse file read as zeros and count as missing, too.
"""

import hashlib
import json
import zlib
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdedge.pipeline.models.teacher import FeatureTap, Teacher
from kdedge.pipeline.training.batches import Batch
from kdedge.pipeline.training.device import autocast
from kdedge.pipeline.training.options import RuntimeConfig
from kdedge.progress import log, warn_once

__all__ = ["CachedTeacher", "LogitsFile", "cache_name"]

# Raised whenever the same key would have other bits: other images of the same number, other rounding, other parts.
_VERSION = 3
_CRC_BYTES = 4
_FILE_LIMIT = 1_500_000_000  # bytes; CIFAR-10 at shift 2 takes 60 MB
_FOLDER_LIMIT = 4_000_000_000


def cache_name(
    teacher_sha256: tuple[str, str], data_sha256: str, shift: int, batch_size: int, runtime: RuntimeConfig
) -> str:
    """Return the name of the file for everything that decides the bits of a teacher's logits.

    Args:
        teacher_sha256: Of the teacher's weight file and of its description: another stem computes other logits from
            the same weights.
        data_sha256: Of the training images.
        shift: Largest shift of an image in pixels.
        batch_size: Images per call of the teacher.
        runtime: Resolved; the seed does not matter.
    """
    device = torch.cuda.get_device_name() if runtime.device == "cuda" else runtime.isa
    arithmetic = [device, runtime.threads, runtime.precision, torch.__version__]
    key = [_VERSION, *teacher_sha256, data_sha256, shift, batch_size, *arithmetic]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32] + ".logits"


class LogitsFile:
    """Logits by number of the augmented image, in one file, opened on first use.

    Args:
        path: The file; created if it is missing.
        classes: Logits per image.
        augmentations: Number of augmented images (0: they have no numbers, so nothing is kept).
    """

    def __init__(self, path: Path, *, classes: int, augmentations: int) -> None:
        self._path, self._classes, self._augmentations = path, classes, augmentations
        self._entry = 2 * classes + _CRC_BYTES

    def read(self, augmentations: NDArray[np.int64]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return logits float16 ``[N, C]`` and whether each is in the file, bool ``[N]``; none has the number -1."""
        logits = np.zeros((len(augmentations), self._classes), np.float16)
        found = np.zeros(len(augmentations), bool)
        for row, number in enumerate(augmentations.tolist()):
            if self._file is None:
                break
            if number < 0:
                continue
            try:
                self._file.seek(number * self._entry)
                entry = self._file.read(self._entry)
            except OSError as error:
                self._give_up(error)
                break
            if len(entry) == self._entry and any(entry) and entry[-_CRC_BYTES:] == _checksum(entry, number):
                logits[row] = np.frombuffer(entry[:-_CRC_BYTES], np.float16)
                found[row] = True
        return logits, found

    def write(self, augmentations: NDArray[np.int64], logits: NDArray[np.float16]) -> None:
        """Write logits float16 ``[N, C]``; a full disk ends the cache, not the run."""
        for number, row in zip(augmentations.tolist(), logits, strict=True):
            if self._file is None:
                return
            if number < 0:
                continue
            entry = row.tobytes() + bytes(_CRC_BYTES)
            try:
                self._file.seek(number * self._entry)
                self._file.write(entry[:-_CRC_BYTES] + _checksum(entry, number))
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file; later reads find nothing, and writes have no effect."""
        if file := self.__dict__.get("_file"):  # the property would open it
            with suppress(OSError):
                file.close()
        self._file = None

    @cached_property
    def _file(self) -> IO[bytes] | None:
        if not self._augmentations:
            return None
        size = self._augmentations * self._entry
        if size > _FILE_LIMIT:
            log(f"teacher logits are not kept: all augmented inputs would take {size / 1e9:.1f} GB")
            return None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _make_room(self._path)
            return self._path.open("r+b", buffering=0)
        except OSError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: OSError) -> None:
        warn_once(f"teacher logits are not kept: {error.strerror or error}")
        self.close()


class CachedTeacher:
    """A frozen teacher that computes the logits of an augmented image once.

    Args:
        teacher: In eval mode.
        runtime: Decides the precision.
        file: The cache.
        batch_size: Images per call of the teacher.
    """

    def __init__(self, teacher: Teacher, runtime: RuntimeConfig, file: LogitsFile, batch_size: int) -> None:
        self._teacher, self._runtime, self._file, self._batch_size = teacher, runtime, file, batch_size
        self._computed = 0

    @torch.no_grad()
    def __call__(self, batch: Batch, blocks: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of a batch and the maps of some blocks, on the device of the batch.

        Args:
            batch: B augmented images.
            blocks: Names from `kdedge.pipeline.models.teacher.hint_candidates`.

        Returns:
            (logits float32 ``[B, C]``, rounded to fp16; maps ``[B, C', H, W]`` by block).
        """
        logits, found = self._file.read(batch.augmentations)
        part = self._batch_size
        maps: dict[str, list[Tensor]] = {name: [] for name in blocks}
        with autocast(self._runtime), FeatureTap(self._teacher, blocks) as tap:
            for start in range(0, len(logits), part):
                rows = np.arange(start, min(start + part, len(logits)))
                missing = rows[~found[rows]]
                if not len(missing) and not blocks:
                    continue
                filled = torch.from_numpy(np.resize(rows, part))  # repeats the rows of a smaller last part
                pixels = batch.pixels[filled.to(batch.pixels.device)]
                if len(missing):
                    logits[missing] = self._teacher(pixels).half().cpu().numpy()[missing - start]
                    self._file.write(batch.augmentations[missing], logits[missing])
                else:
                    tap.run_to_deepest(pixels)
                for name in blocks:
                    maps[name].append(tap.maps[name][: len(rows)])
        self._computed += int((~found).sum())
        on_device = torch.from_numpy(logits).to(batch.pixels.device).float()
        return on_device, {name: torch.cat(parts) for name, parts in maps.items()}

    def close(self) -> None:
        """Close the cache."""
        self._file.close()

    def take_computed(self) -> int:
        """Return the number of logits computed since the last call."""
        computed, self._computed = self._computed, 0
        return computed


def _checksum(entry: bytes, number: int) -> bytes:
    return zlib.crc32(entry[:-_CRC_BYTES], number & 0xFFFFFFFF).to_bytes(_CRC_BYTES, "little")


def _make_room(path: Path) -> None:
    """Delete the least recently used files, except ``path``, while the folder is too large."""
    path.touch()  # made, or used now
    others = sorted((other for other in path.parent.glob("*.logits") if other != path), key=_last_use)
    total = sum(map(_bytes_on_disk, [path, *others]))
    for other in others:
        if total <= _FOLDER_LIMIT:
            return
        total -= _bytes_on_disk(other)
        with suppress(OSError):
            other.unlink()


def _last_use(path: Path) -> float:
    return _stat(path, "st_mtime")


def _bytes_on_disk(path: Path) -> float:
    return _stat(path, "st_blocks") * 512


def _stat(path: Path, key: str) -> float:
    try:
        return float(getattr(path.stat(), key, 0))
    except FileNotFoundError:  # another process made room
        return 0.0

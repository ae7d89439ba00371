"""Check that decoded images fit into memory before the first is decoded."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdedge.errors import InputError

__all__ = ["available_bytes", "empty_images"]

# Limit, use, and reclaimable part of the use, of control groups version 2 and 1.
_CGROUP_2 = ("memory.max", "memory.current", "inactive_file")
_CGROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def empty_images(count: int, size: int, channels: int = 3) -> NDArray[np.uint8]:
    """Allocate an array for decoded images, ``[count, size, size, channels] uint8``.

    Args:
        count: Number of images.
        size: Side length of the images in pixels.
        channels: Channels of the images.

    Raises:
        InputError: The images need more memory than is available.
    """
    needed, available = count * size * size * channels, available_bytes()
    if needed > available:
        raise InputError(
            f"{count:,} images of {size} x {size} pixels need {needed / 1e9:.1f} GB of memory; "
            f"{available / 1e9:.1f} GB are available",
            "use a smaller --image-size, or fewer training images with --train-size",
        )
    return np.empty((count, size, size, channels), np.uint8)


def available_bytes() -> int:
    """Return the memory in bytes that machine, control groups and resource limit leave to this process."""
    import psutil

    left = [psutil.virtual_memory().available, *_left_in_cgroups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(limit - psutil.Process().memory_info().vms)
    return max(0, int(min(left)))


def _left_in_cgroups(own: Path, root: Path) -> Iterator[int]:
    """Yield the free memory in bytes of each control group of this process that has a limit."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, (limit, usage, spare) = (root / "memory", _CGROUP_1) if controllers else (root, _CGROUP_2)
        here = top / path.lstrip("/")
        for group in (here, *here.parents):
            try:
                used = int((group / usage).read_text())
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                yield int((group / limit).read_text()) - used + int(stat.get(spare, 0))
            except (OSError, ValueError):  # no such group in this container, or "max"
                pass
            if group == top:
                break

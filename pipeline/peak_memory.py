"""The peak memory of a stage in this process."""

import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_rss_mb", "reset_peak"]


def _largest_rss_kb() -> int:
    """Return the largest resident memory of this process so far, or since `reset_peak`, in KiB (0: unknown)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def reset_peak() -> int:
    """Reset the largest resident memory on Linux; return the value to compare with, in KiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _largest_rss_kb()
    return 0


def peak_rss_mb(before_kb: int) -> float | None:
    """Return the largest resident memory since `reset_peak` returned ``before_kb``, in 10^6 bytes.

    None if unknown: earlier work used as much, or the system does not report it.
    """
    peak_kb = _largest_rss_kb()
    return round(peak_kb * 1024 / 1e6, 1) if peak_kb > before_kb else None

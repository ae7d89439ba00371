"""Cores, CPU quota, CPU name and instruction set of this machine."""

import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Cpu", "cpu_info", "cpu_isa", "cpu_quota", "usable_cores"]

# From the most to the least capable.
_ISA_LEVELS = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "sve", "bf16", "asimd", "neon")


def usable_cores() -> int:
    """Return the number of logical CPUs in the affinity of this process, at most its CPU quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(allowed, math.ceil(cpu_quota() or allowed))


def cpu_quota(cgroups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPU quota of this process's control groups in CPUs (0.5: half of one); None: no limit.

    Args:
        cgroups: File with the groups: ``0::/PATH`` (version 2) or ``NUMBER:cpu,cpuacct:/PATH`` (version 1).
        mounts: Folder of the groups. In a container PATH may be missing there; the groups above PATH count too.
    """
    quotas = []
    for line in _lines(cgroups):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = mounts / controllers / path.lstrip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(mounts.parts)]):
            limit = [*_lines(folder / "cpu.max"), *_lines(folder / "cpu.cfs_quota_us"), ""][0].split()
            period = [*limit[1:], *_lines(folder / "cpu.cfs_period_us")]
            if limit and limit[0].isdecimal() and period:  # neither "max" (version 2) nor "-1" (version 1)
                quotas.append(int(limit[0]) / int(period[0]))
    return min(quotas, default=None)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


class Cpu(NamedTuple):
    """Name (empty if unknown) and features of a CPU, as Linux or cpuid names them."""

    name: str
    flags: frozenset[str]


@cache
def cpu_info() -> Cpu:
    """Return the CPU of this machine."""
    if sys.platform == "linux":
        return linux_cpu(_lines(Path("/proc/cpuinfo")))
    import cpuinfo  # takes about a second

    info = cpuinfo.get_cpu_info()
    return Cpu(info.get("brand_raw", ""), frozenset(info.get("flags", ())))


def linux_cpu(lines: list[str]) -> Cpu:
    """Return the CPU from the lines of ``/proc/cpuinfo``, which lack the name on arm64: ``lscpu`` has it."""
    fields = _fields(lines)
    flags = fields.get("flags") or fields.get("Features") or ""  # x86 or ARM
    return Cpu(fields.get("model name") or _lscpu_name(), frozenset(flags.split()))


def _lscpu_name() -> str:
    try:
        command = ["lscpu"]
        environment = {**os.environ, "LC_ALL": "C"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return _fields(result.stdout.splitlines()).get("Model name", "")


def _fields(lines: list[str]) -> dict[str, str]:
    """Return the first value of every ``name: value``."""
    pairs = [[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]
    return dict(reversed(pairs))


def cpu_isa() -> str:
    """Return the most capable instruction set of this CPU that matters for training."""
    return next((level for level in _ISA_LEVELS if level in cpu_info().flags), "baseline")

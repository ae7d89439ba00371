"""Peak memory of a new process that only loads and runs a model, and a test within a memory limit.

The process is `benchmarks/bare_process.py`: Python, numpy, onnxruntime and the model.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.benchmarks.session import CPU
from kdedge.errors import InputError

__all__ = ["check_limit", "measure_memory"]

_PROGRAM = Path(__file__).with_name("bare_process.py")
_TIMEOUT_S = 120


def check_limit(limit_mib: int) -> None:
    """Check that this system can limit the memory of a process, unless the limit is 0.

    Raises:
        InputError: The system cannot.
    """
    if limit_mib and sys.platform != "linux":
        raise InputError(f"--memory-limit needs Linux, this is {sys.platform}", "leave --memory-limit out")


def measure_memory(models: Mapping[str, Path], *, threads: int = 1, limit_mib: int = 0) -> list[dict[str, Any]]:
    """Load and run each model at batch 1 in a process of its own, on the CPU provider.

    Args:
        models: Name (``fp32``, ``int8``) to ONNX file.
        threads: Intra-op threads.
        limit_mib: Also run it within this limit of private writable memory (heap, stacks, buffers; not the mapped
            libraries) in MiB. 0: no. The limit does not simulate another machine.

    Returns:
        The rows of ``memory`` in ``report.json``: ``model``, ``provider``, ``batch``, ``threads``, ``peak_rss_bytes``,
        ``baseline_bytes`` (the peak before the model was loaded) and ``reason`` (why they are unknown, else None);
        ``limit_mib`` (None: no limit), ``within_limit`` (None: not tried) and ``limit_reason`` (the failure).

    Raises:
        InputError: This system cannot limit the memory of a process.
    """
    check_limit(limit_mib)
    rows = []
    for name, path in models.items():
        found, reason = _run(path, threads, 0)
        row = {
            "model": name, "provider": CPU, "batch": 1, "threads": threads,
            "peak_rss_bytes": None, "baseline_bytes": None, **found, "reason": reason or None,
            "limit_mib": limit_mib or None, "within_limit": None, "limit_reason": None,
        }  # fmt: skip
        if not reason and row["peak_rss_bytes"] is None:
            row["reason"] = "this system does not report the peak memory of a process (VmHWM in /proc/self/status)"
        # Without a result, a limit cannot be tested.
        if limit_mib and not reason:
            _, failure = _run(path, threads, limit_mib)
            row |= {"within_limit": not failure, "limit_reason": failure or None}
        rows.append(row)
    return rows


def _run(path: Path, threads: int, limit_mib: int) -> tuple[dict[str, Any], str]:
    """Return the output of the process and its failure; empty: none."""
    # -P: modules next to the program must not hide those of the standard library.
    command = [sys.executable, "-P", str(_PROGRAM), str(path), str(threads), str(limit_mib)]
    # The buffers of BLAS, which the model does not use, would grow with the cores of this machine.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return {}, f"the process could not be run: {error}"
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        ended = f"exit code {result.returncode}" if result.returncode > 0 else f"signal {-result.returncode}"
        return {}, f"the process ended with {ended}: {last}"
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found, ""

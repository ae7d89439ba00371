"""The runtime of a training: device, threads, precision, instruction set, processes. Resolved once, and recorded.

All of them change the bits of the trained weights. `resolve` replaces the ``auto`` values. Values that the run resolved
earlier on the same kind of CPU are kept, so that an interrupted run resumes with them.
"""

import ctypes
import dataclasses
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil

from kdedge.errors import InputError
from kdedge.machine import cpu_isa, usable_cores
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.options import RuntimeConfig
from kdedge.progress import log

if TYPE_CHECKING:
    import torch

__all__ = [
    "autocast",
    "check_cuda",
    "check_threads",
    "prepare",
    "resolve",
]

_MOST_THREADS_PER_CORE = 8
_LOAD_S = 0.3  # time in which the load by other processes is measured


def resolve(wanted: RuntimeConfig, earlier: Mapping[str, Any] | None, *, jobs: int = 1) -> RuntimeConfig:
    """Replace ``auto`` and 0 by values of this machine.

    The CPU of a host with a GPU decides no bits, so a student from a GPU can be quantized and measured on any host. A
    runtime that was resolved to ``cuda`` or for several processes is kept; both are checked before a stage is trained.

    Args:
        wanted: The runtime of the user, or a resolved one.
        earlier: The ``runtime`` table that the same run resolved before, if any.
        jobs: Processes that share the cores.

    Raises:
        InputError: ``cuda`` was set and is unavailable.
    """
    isa = cpu_isa()
    known = earlier if earlier and earlier.get("isa") == isa else {}
    if earlier and earlier.get("device") == "cuda" and wanted.device != "cpu":
        known, isa = earlier, earlier["isa"]
    elif wanted.device == "cuda" and wanted.isa != "auto":
        isa = wanted.isa
    device = wanted.device if wanted.device != "auto" else known.get("device", "")
    if not device:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif wanted.device == "cuda" and wanted.isa == "auto":
        check_cuda()
    check_threads(wanted.threads, earlier)
    jobs *= distributed.local_processes()
    threads = wanted.threads or known.get("threads", 0) or max(1, usable_cores() // jobs)
    precision = wanted.precision if wanted.precision != "auto" else known.get("precision", "")
    if not precision or (device != known.get("device", device) and wanted.precision == "auto"):
        precision = _cuda_precision() if device == "cuda" else _faster_precision(threads)
    together = distributed.processes() if distributed.processes() > 1 else (earlier or {}).get("processes", 1)
    return dataclasses.replace(wanted, device=device, threads=threads, precision=precision, isa=isa, processes=together)


def check_threads(threads: int, earlier: Mapping[str, Any] | None) -> None:
    """Refuse far more threads than usable cores, which would be extremely slow.

    Args:
        threads: The number of the user (0: all cores).
        earlier: As for `resolve`; its number of threads is accepted.

    Raises:
        InputError: There are more than `_MOST_THREADS_PER_CORE` threads per core.
    """
    cores = usable_cores()
    if threads > _MOST_THREADS_PER_CORE * cores and threads != (earlier or {}).get("threads"):
        raise InputError(
            f"--threads {threads} is far above the {cores} usable cores, and slower than {cores} threads",
            f"use at most {cores}, or leave it out",
        )


def prepare(runtime: RuntimeConfig) -> "torch.device":
    """Set up PyTorch for a training stage: threads, deterministic kernels, the allocator, the seed.

    Raises:
        InputError: The device is a GPU, and there is none.
    """
    import torch

    if runtime.device == "cuda":
        check_cuda()
        distributed.use_own_gpu()
    elif runtime.threads > 1:
        _log_load(runtime.threads)
    torch.set_num_threads(runtime.threads)
    torch.manual_seed(runtime.seed)
    torch.use_deterministic_algorithms(True, warn_only=runtime.device == "cuda")
    # With deterministic algorithms PyTorch fills every new buffer with NaN, to expose reads of uninitialized memory.
    # That takes 20 % of a student step and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if runtime.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it matrix products are not deterministic
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = runtime.precision != "fp32"  # by default fp32 convolutions round to 10 bits
    if sys.platform == "linux" and runtime.device == "cpu":
        # glibc returns big buffers to the kernel after every step and faults them in again (-3: M_MMAP_THRESHOLD,
        # -1: M_TRIM_THRESHOLD). Keeping them makes training 25 % faster. musl has no mallopt.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 1 << 30)
            mallopt(-1, (1 << 31) - 1)
    return torch.device(runtime.device)


def _log_load(threads: int) -> None:
    """Log that fewer threads may be faster if other processes leave fewer cores than threads."""
    cores = psutil.cpu_count() or 1
    busy = cores * psutil.cpu_percent(_LOAD_S) / 100
    if busy + threads > cores + 0.5:
        fewer = max(1, round(cores - busy))
        log(f"other processes use {busy:.1f} of {cores} cores: --threads {fewer} may train faster than {threads}")


def autocast(runtime: RuntimeConfig) -> "torch.autocast":
    """Return the autocast context of a training step."""
    import torch

    return torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.precision == "bf16")


def check_cuda() -> None:
    """Check that there is a GPU to train on.

    Raises:
        InputError: PyTorch finds none.
    """
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "training on cuda: PyTorch finds no CUDA device",
            "see `kdedge doctor`; --device cpu trains on the CPU, and repeats stages that a GPU made",
        )


def _cuda_precision() -> str:
    """Return bf16 if this GPU has the instructions; emulated, it is slower than fp32."""
    import torch

    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _faster_precision(threads: int) -> str:
    """Time a convolution's training step in both precisions on this CPU.

    Some CPUs with bf16 instructions run them at half the fp32 rate.
    """
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.rand(32, 128, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    best_s = {"fp32": math.inf, "bf16": math.inf}
    for _ in range(15):  # in turns, so that other load affects both; the first rounds warm up the primitives
        for precision, best in best_s.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                out = conv(x)
            out.float().sum().backward()
            best_s[precision] = min(best, time.perf_counter() - start)
    choice = min(best_s, key=lambda name: best_s[name])
    fp32_ms, bf16_ms = (1e3 * best_s[precision] for precision in ("fp32", "bf16"))
    log(f"precision: {choice} (one convolution: {fp32_ms:.1f} ms in fp32, {bf16_ms:.1f} ms in bf16)")
    return choice

"""Latency of the FP32 and INT8 model on this host, and whether the numbers may be quoted.

For every provider, batch size and thread count both models are loaded and warmed up; then windows of fixed
duration alternate between them, so that a change of clock or load hits both alike. Every call is timed alone
around ``session.run``. `judge_windows` looks for evidence against the numbers: windows that disagree, other
processes at work, too few samples, more threads than cores.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.runtime import CPU, open_model
from pipeline.progress import track
from pipeline.runtime import usable_cores

__all__ = [
    "NOISY",
    "STEADY",
    "WINDOWS",
    "Window",
    "judge_windows",
    "measure_latency",
    "measure_windows",
    "summarise",
]

STEADY = "steady"
NOISY = "noisy: do not quote"
WINDOWS = 5

_WARM_UP_CALLS = 3
_WARM_UP_SHARE = 0.1
# Medians of windows on a quiet machine agree within a few percent.
_MOST_SPREAD = 0.10
# Work of other processes as a share of the machine: one busy core counts on anything below 10 cores.
_MOST_OTHER_LOAD = 0.10
_FEWEST_SAMPLES = 50
_FEWEST_FOR_P90 = 100
_FEWEST_FOR_P99 = 1000


@dataclass
class Window:
    """One window of calls to one model.

    Attributes:
        samples_ms: Duration of every call in milliseconds.
        other_load: CPU time that other processes (and the hypervisor) took meanwhile, as a share of all cores;
            None if the operating system does not tell.
    """

    samples_ms: list[float] = field(default_factory=list)
    other_load: float | None = None


def measure_latency(
    models: Mapping[str, Path],
    *,
    provider: str = CPU,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 3.0,
    cores: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure the latency of several models side by side.

    Args:
        models: Name (``fp32``, ``int8``) to ONNX file.
        provider: Execution provider.
        batches: Batch sizes to measure.
        threads: Intra-op thread counts to measure.
        seconds: Measuring time per model, batch size and thread count, split into `WINDOWS` windows.
        cores: Cores that this process may use; None: ask the operating system.

    Returns:
        The rows of ``latency`` in ``report.json``, and the raw samples in the same order: the keys of the row and
        ``windows_ms``, a list of calls for each window.

    Raises:
        InputError: A model cannot be read.
        StageError: The execution provider could not be started.
    """
    cores = cores or usable_cores()
    rows: list[dict[str, Any]] = []
    raw: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    cases = [(count, batch) for count in threads for batch in batches]
    with track(f"latency ({provider.removesuffix('ExecutionProvider')})", len(cases) * WINDOWS * len(models)) as bar:
        for count, batch in cases:
            opened = {name: open_model(path, provider=provider, threads=count) for name, path in models.items()}
            calls, first_ms = {}, {}
            for name, model in opened.items():
                size = model.image_size
                pixels: npt.NDArray[np.uint8] = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
                calls[name] = model.caller(pixels)
                first_ms[name] = _timed_ms(calls[name], time.perf_counter_ns)
            advance = functools.partial(bar.advance, note=f"batch {batch}, {count} thread{'s' * (count > 1)}")
            for name, windows in measure_windows(calls, seconds, on_window=advance).items():
                model = opened[name]
                keys = {"provider": provider, "model": name, "batch": batch, "threads": count}
                rows.append(
                    {
                        **keys,
                        **summarise(windows, batch),
                        "load_ms": round(model.load_ms, 3),
                        "first_run_ms": round(first_ms[name], 3),
                        "trust": judge_windows(windows, count, cores),
                    }
                )
                raw.append({**keys, "windows_ms": [[round(ms, 5) for ms in w.samples_ms] for w in windows]})
    return rows, raw


def measure_windows(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    windows: int = WINDOWS,
    clock: Callable[[], int] = time.perf_counter_ns,
    load: "Callable[[], CpuTimes | None] | None" = None,
    on_window: Callable[[], object] = lambda: None,
) -> dict[str, list[Window]]:
    """Time calls in windows of fixed duration that alternate between the candidates.

    Args:
        calls: Name to the call that is measured.
        seconds: Measuring time per candidate in seconds, over all windows; every window has at least one call.
        windows: Windows per candidate.
        clock: Returns the time in nanoseconds.
        load: Returns the CPU times so far; by default those of the operating system.
        on_window: Called after every window.

    Returns:
        The windows of each candidate. The warm-up (at least 3 calls and a tenth of ``seconds``) is not in them.
    """
    load = load or CpuTimes.now
    for call in calls.values():
        until = clock() + int(_WARM_UP_SHARE * seconds * 1e9)
        done = 0
        while done < _WARM_UP_CALLS or clock() < until:
            call()
            done += 1
    measured: dict[str, list[Window]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(windows):
        for name in order:
            before = load()
            samples = _run_window(calls[name], int(seconds / windows * 1e9), clock)
            after = load()
            measured[name].append(Window(samples, after.others_since(before) if after and before else None))
            on_window()
        # ABBA order: a steady drift of the clock cancels out.
        order.reverse()
    return measured


def summarise(windows: Sequence[Window], batch: int) -> dict[str, Any]:
    """Return percentiles, mean and throughput of all calls in some windows.

    A percentile that the samples cannot support is None: p90 below 100 samples, p99 below 1000 (fewer than ten
    samples would lie above it).

    Args:
        windows: At least one window with at least one sample.
        batch: Images per call.
    """
    samples = np.concatenate([window.samples_ms for window in windows])
    enough = {"p50_ms": 1, "p90_ms": _FEWEST_FOR_P90, "p99_ms": _FEWEST_FOR_P99}
    mean_ms = float(samples.mean())
    return {
        **{
            key: round(float(np.percentile(samples, int(key[1:3]))), 5) if len(samples) >= least else None
            for key, least in enough.items()
        },
        "mean_ms": round(mean_ms, 5),
        "throughput_ips": round(1000 * batch / mean_ms, 2),
        "samples": len(samples),
    }


def judge_windows(windows: Sequence[Window], threads: int, cores: int) -> dict[str, Any]:
    """Decide whether measured windows can be trusted.

    Args:
        windows: The windows of one model.
        threads: Intra-op threads that it ran with.
        cores: Cores that this process may use.

    Returns:
        ``verdict`` (`STEADY` or `NOISY`), ``reasons`` (a sentence for each piece of evidence against the numbers),
        and the evidence: ``window_spread_pct`` (range of the window medians over their median) and
        ``other_load_pct`` (highest load by other processes in a window, None if unknown).
    """
    medians = [float(np.median(window.samples_ms)) for window in windows]
    spread = (max(medians) - min(medians)) / float(np.median(medians))
    loads = [window.other_load for window in windows if window.other_load is not None]
    other = max(loads) if loads else None
    samples = sum(len(window.samples_ms) for window in windows)
    reasons = []
    if spread > _MOST_SPREAD:
        reasons.append(f"medians of the windows differ by {100 * spread:.0f} % (at most {100 * _MOST_SPREAD:.0f} %)")
    if other is not None and other > _MOST_OTHER_LOAD:
        reasons.append(
            f"other processes used {100 * other:.0f} % of the CPU (at most {100 * _MOST_OTHER_LOAD:.0f} %): stop them"
        )
    if samples < _FEWEST_SAMPLES:
        reasons.append(f"only {samples} samples (at least {_FEWEST_SAMPLES}): raise --latency-seconds")
    if threads > cores:
        reasons.append(f"{threads} threads on {cores} core{'s' * (cores > 1)}")
    return {
        "verdict": NOISY if reasons else STEADY,
        "reasons": reasons,
        "window_spread_pct": round(100 * spread, 2),
        "other_load_pct": None if other is None else round(100 * other, 2),
    }


@dataclass(frozen=True)
class CpuTimes:
    """A moment: wall time, CPU time of the whole machine and of this process, all in seconds."""

    wall_s: float
    machine_s: float
    own_s: float
    cores: int

    @classmethod
    def now(cls) -> "CpuTimes | None":
        """Read the counters; None where the operating system has none."""
        try:
            import psutil

            times = psutil.cpu_times()
        except (ImportError, OSError):
            return None
        # On Linux user contains guest, and nice contains guest_nice.
        idle = {"idle", "iowait", "guest", "guest_nice"}
        machine = sum(value for name, value in times._asdict().items() if name not in idle)
        own = os.times()
        return cls(time.monotonic(), machine, own.user + own.system, psutil.cpu_count() or 1)

    def others_since(self, earlier: "CpuTimes") -> float | None:
        """Return the CPU time that others took since ``earlier`` as a share of all cores (0..1).

        None for less than 0.1 s: the kernel counts in steps of 0.01 s.
        """
        wall = self.wall_s - earlier.wall_s
        if wall < 0.1:
            return None
        others = (self.machine_s - earlier.machine_s) - (self.own_s - earlier.own_s)
        return min(max(others / (wall * self.cores), 0.0), 1.0)


def _run_window(call: Callable[[], object], duration_ns: int, clock: Callable[[], int]) -> list[float]:
    """Call until the duration is over, at least once; return the duration of each call in milliseconds."""
    samples: list[int] = []
    now = clock()
    until = now + duration_ns
    while now < until or not samples:
        # The end of one call is not the start of the next: the bookkeeping between them is not measured.
        start = clock()
        call()
        now = clock()
        samples.append(now - start)
    return [ns / 1e6 for ns in samples]


def _timed_ms(call: Callable[[], object], clock: Callable[[], int]) -> float:
    start = clock()
    call()
    return (clock() - start) / 1e6

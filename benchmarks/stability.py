"""Stability of measured latencies: the evidence of every window, and the verdict whether numbers may be quoted.

Between windows `Reading.take` reads the CPU times of the machine and the kernel's counters of thermal throttling, and
times a fixed loop. The loop takes longer at a lower clock or on a shared core, also in a virtual machine, which hides
the clock. `judge_windows` returns the verdict. `disturbances` returns only the temporary problems, for which more
windows help.
"""

import dataclasses
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "NOISY",
    "STEADY",
    "CpuTimes",
    "Doubt",
    "Reading",
    "Window",
    "disturbances",
    "judge_windows",
    "spin_ms",
    "stability_word",
    "throttle_count",
    "worst_doubts",
]

STEADY = "steady"
NOISY = "noisy: do not quote"

# Medians of windows on a quiet machine agree within a few percent, and so does the duration of a fixed loop.
_MOST_SPREAD = 0.10
_MOST_CLOCK_CHANGE = 0.10
# Load by other processes as a share of the CPUs: one busy core counts below 10 cores. Spinning threads amplify the
# disturbance, because they wait for a displaced thread.
_MOST_OTHER_LOAD = 0.10
_MOST_OTHER_LOAD_SPINNING = 0.03
_FEWEST_SAMPLES = 50
_SHORTEST_FOR_LOAD_S = 0.1  # the kernel counts CPU time in steps of 0.01 s
# 0.17 ms on a PC, 0.5 ms on a small board; the fastest of several runs was not interrupted.
_SPIN_STEPS = 10_000
_SPINS = 10
_CPU_FOLDER = Path("/sys/devices/system/cpu")


# By kind: the sentence, and whether a smaller value is worse.
_SENTENCES = {
    "spread": ("medians of the windows differ by {value:.1f} % (at most {bound:.0f} %)", False),
    "load": ("other processes used {value:.1f} % of the CPU (at most {bound:.0f} %): stop them", False),
    "load_spinning": (
        "other processes used {value:.1f} % of the CPU (at most {bound:.0f} % with spinning threads): stop them",
        False,
    ),
    "clock": (
        "the processor slowed down: a fixed loop took {value:.1f} % longer than at its fastest "
        "(at most {bound:.0f} %): fix the clock, let it cool, or free the core's other thread",
        False,
    ),
    "heat": ("the processor was throttled by heat: cool it", False),
    "samples": ("only {value:.0f} samples (at least {bound:.0f}): raise --latency-seconds", True),
    "short": (
        "windows of {value:.2g} s are too short to see other load (at least {bound:g} s): raise --latency-seconds",
        True,
    ),
    "quota": (
        "the kernel throttles this process: its CPU quota is {value:g} CPUs, and {bound:.0f} thread{plural} can use "
        "{bound:.0f}: raise the quota of its control group",
        True,
    ),
    "threads": ("{value:.0f} threads on {bound:.0f} core{plural}", False),
}


@dataclass(frozen=True)
class Doubt:
    """A piece of evidence against measured latencies.

    Attributes:
        kind: A key of the sentences above.
        value: The measured value, in the unit of the sentence.
        bound: The accepted value, in the same unit.
    """

    kind: str
    value: float
    bound: float

    @property
    def sentence(self) -> str:
        """Return the doubt as a sentence with advice."""
        text, _ = _SENTENCES[self.kind]
        return text.format(value=self.value, bound=self.bound, plural="s" * (self.bound != 1))

    @property
    def excess(self) -> float:
        """Return a number that is larger for the worse of two doubts of one kind."""
        _, less_is_worse = _SENTENCES[self.kind]
        return -self.value if less_is_worse else self.value


@dataclass(frozen=True)
class CpuTimes:
    """CPU times at a moment.

    Attributes:
        wall_s: Wall time in seconds.
        own_s: CPU time of this process so far in seconds.
        busy_s: Busy time of each CPU of the machine so far in seconds.
        usable: Indices in ``busy_s`` of the CPUs that this process may use.
    """

    wall_s: float
    own_s: float
    busy_s: tuple[float, ...]
    usable: tuple[int, ...]

    @classmethod
    def now(cls) -> "CpuTimes | None":
        """Read the counters; None if the operating system has none."""
        try:
            import psutil

            every = psutil.cpu_times(percpu=True)
        except (ImportError, OSError):
            return None
        # On Linux user contains guest, and nice contains guest_nice.
        idle = {"idle", "iowait", "guest", "guest_nice"}
        busy = tuple(sum(value for name, value in times._asdict().items() if name not in idle) for times in every)
        usable = tuple(range(len(every)))
        # With an offline CPU the indices are not CPU numbers: then all CPUs count.
        if hasattr(os, "sched_getaffinity") and os.sysconf("SC_NPROCESSORS_CONF") == len(every):
            usable = tuple(os.sched_getaffinity(0))
        own = os.times()
        return cls(time.monotonic(), own.user + own.system, busy, usable)

    def others_since(self, earlier: "CpuTimes") -> float | None:
        """Return the CPU time of other processes since ``earlier`` as a share of the CPUs (0..1).

        The larger of two shares: of the CPUs that this process may use, and of all CPUs of the machine, which share
        caches, memory and clock with them. None for less than 0.1 s, or if the number of CPUs changed.
        """
        wall = self.wall_s - earlier.wall_s
        if wall < _SHORTEST_FOR_LOAD_S or len(self.busy_s) != len(earlier.busy_s):
            return None
        own = self.own_s - earlier.own_s
        busy = [after - before for before, after in zip(earlier.busy_s, self.busy_s, strict=True)]
        everywhere = (sum(busy) - own) / (wall * len(busy))
        here = (sum(busy[cpu] for cpu in self.usable) - own) / (wall * len(self.usable))
        return min(max(everywhere, here, 0.0), 1.0)


@dataclass(frozen=True)
class Reading:
    """The state of the machine between two windows.

    Attributes:
        cpu: CPU times so far, or None.
        throttles: See `throttle_count`.
        spin_ms: See `spin_ms`; None: not timed.
    """

    cpu: CpuTimes | None = None
    throttles: int | None = None
    spin_ms: float | None = None

    @classmethod
    def take(cls) -> "Reading":
        """Read the state, in a few milliseconds."""
        return cls(CpuTimes.now(), throttle_count(), spin_ms())


@dataclass
class Window:
    """One window of calls to one model.

    Attributes:
        samples_ms: Duration of every call in milliseconds.
        other_load: CPU time of other processes (and the hypervisor) in it, see `CpuTimes.others_since`; None if
            unknown or the window is too short.
        spin_ms: The faster of the fixed loops before and after it, in milliseconds; None if they were not timed. A low
            clock or a busy neighbour on the core slows both, a short interruption only one.
        throttles: Thermal throttling events in it; None if unknown.
    """

    samples_ms: list[float] = field(default_factory=list)
    other_load: float | None = None
    spin_ms: float | None = None
    throttles: int | None = None

    @classmethod
    def between(cls, samples_ms: list[float], before: Reading, after: Reading) -> "Window":
        """Return the window between two readings."""
        spins = [reading.spin_ms for reading in (before, after) if reading.spin_ms is not None]
        throttles = None
        if before.throttles is not None and after.throttles is not None:
            throttles = after.throttles - before.throttles
        load = after.cpu.others_since(before.cpu) if before.cpu and after.cpu else None
        return cls(samples_ms, load, min(spins, default=None), throttles)


def spin_ms(clock: Callable[[], int] = time.perf_counter_ns) -> float:
    """Return the duration of a fixed loop of integer work in milliseconds, the fastest of ten runs.

    Args:
        clock: Returns the time in nanoseconds.
    """
    durations = []
    for _ in range(_SPINS):
        start = clock()
        sum(range(_SPIN_STEPS))
        durations.append(clock() - start)
    return min(durations) / 1e6


def throttle_count(folder: Path = _CPU_FOLDER) -> int | None:
    """Return the number of thermal throttling events since boot; None if the kernel does not count them (x86 does).

    Args:
        folder: The sysfs directory of the CPUs.
    """
    counts = []
    for path in _throttle_files(folder):
        try:
            counts.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return sum(counts) if counts else None


@functools.cache
def _throttle_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))


def disturbances(
    windows: Sequence[Window], *, spinning: bool = False, fastest_spin_ms: float | None = None
) -> tuple[list[Doubt], dict[str, Any]]:
    """Return the disturbances of some windows: spread, other processes, a lower clock, heat.

    Args:
        windows: The windows of one model.
        spinning: Whether several threads spun while they waited.
        fastest_spin_ms: The fixed loop at the highest clock so far; None: the fastest of these windows.

    Returns:
        The evidence against the numbers, and the evidence of `judge_windows`.
    """
    medians = [float(np.median(window.samples_ms)) for window in windows]
    spread = (max(medians) - min(medians)) / float(np.median(medians))
    other = max((window.other_load for window in windows if window.other_load is not None), default=None)
    spins = [window.spin_ms for window in windows if window.spin_ms is not None]
    clock_change = max(spins) / (fastest_spin_ms or min(spins)) - 1 if spins else None
    throttled = [window.throttles for window in windows if window.throttles is not None]
    most_load = _MOST_OTHER_LOAD_SPINNING if spinning else _MOST_OTHER_LOAD
    doubts = []
    if spread > _MOST_SPREAD:
        doubts.append(Doubt("spread", 100 * spread, 100 * _MOST_SPREAD))
    if other is not None and other > most_load:
        doubts.append(Doubt("load_spinning" if spinning else "load", 100 * other, 100 * most_load))
    if clock_change is not None and clock_change > _MOST_CLOCK_CHANGE:
        doubts.append(Doubt("clock", 100 * clock_change, 100 * _MOST_CLOCK_CHANGE))
    if sum(throttled):
        doubts.append(Doubt("heat", sum(throttled), 0))
    return doubts, {
        "window_spread_pct": round(100 * spread, 2),
        "other_load_pct": None if other is None else round(100 * other, 2),
        "clock_change_pct": None if clock_change is None else round(100 * clock_change, 2),
        "throttle_events": sum(throttled) if throttled else None,
    }


def judge_windows(
    windows: Sequence[Window],
    threads: int,
    cores: int,
    *,
    spinning: bool = False,
    fastest_spin_ms: float | None = None,
    quota: float | None = None,
) -> dict[str, Any]:
    """Decide whether the latencies of measured windows may be quoted.

    Args:
        windows: The windows of one model.
        threads: Intra-op threads of the model.
        cores: Cores that this process may use.
        spinning: Whether its threads spun while they waited.
        fastest_spin_ms: The fixed loop at the highest clock so far; None: the fastest of these windows.
        quota: CPU quota of this process in CPUs; None: no limit.

    Returns:
        ``verdict`` (`STEADY` or `NOISY`), ``doubts`` (each piece of evidence against the numbers, see `Doubt`),
        ``reasons`` (the same as sentences), and the evidence, None where unknown: ``window_spread_pct`` (range of the
        window medians over their median), ``other_load_pct`` (highest load by other processes in a window),
        ``clock_change_pct`` (excess of the slowest fixed loop over the fastest), ``throttle_events``.
    """
    doubts, evidence = disturbances(windows, spinning=spinning and threads > 1, fastest_spin_ms=fastest_spin_ms)
    samples = sum(len(window.samples_ms) for window in windows)
    if samples < _FEWEST_SAMPLES:
        doubts.append(Doubt("samples", samples, _FEWEST_SAMPLES))
    # An unknown load does not prove a quiet machine.
    unseen_s = [sum(window.samples_ms) / 1000 for window in windows if window.other_load is None]
    if unseen_s and min(unseen_s) < _SHORTEST_FOR_LOAD_S:
        doubts.append(Doubt("short", min(unseen_s), _SHORTEST_FOR_LOAD_S))
    if quota is not None and quota < threads:
        doubts.append(Doubt("quota", quota, threads))
    if threads > cores:
        doubts.append(Doubt("threads", threads, cores))
    return {
        "verdict": NOISY if doubts else STEADY,
        "doubts": [dataclasses.asdict(doubt) for doubt in doubts],
        "reasons": [doubt.sentence for doubt in doubts],
        **evidence,
    }


def stability_word(verdict: str) -> str:
    """Return the word for a verdict in tables, also of reports of earlier versions."""
    return "steady" if verdict == STEADY else "noisy"


def worst_doubts(verdicts: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Return each kind of doubt about several measurements once.

    Args:
        verdicts: The result of `judge_windows` for each. Reports of earlier versions have only ``reasons``; those of
            later versions may have other kinds of doubts.

    Returns:
        The sentence of the worst of each kind, and the number of measurements with that kind.
    """
    kinds: dict[str, list[Doubt]] = {}
    other: Counter[str] = Counter()
    for verdict in verdicts:
        doubts = verdict.get("doubts")
        if doubts is None or any(doubt["kind"] not in _SENTENCES for doubt in doubts):
            other.update(verdict["reasons"])
            continue
        for doubt in doubts:
            kinds.setdefault(doubt["kind"], []).append(Doubt(doubt["kind"], doubt["value"], doubt["bound"]))
    worst = [(max(found, key=lambda doubt: doubt.excess).sentence, len(found)) for found in kinds.values()]
    return worst + list(other.items())

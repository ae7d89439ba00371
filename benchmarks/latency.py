"""Latency of several models on this host, in alternating windows.

For every batch size and thread count each model is loaded, run once and warmed up, with separate times. Then windows of
fixed duration alternate between all models and providers, so a change of clock or load affects all of them. The timer
surrounds only the run. After a disturbance more windows follow until the last five in a row are quiet, up to a
limit (like the steady state of Georges et al., "Statistically rigorous Java performance evaluation", OOPSLA 2007); the
earlier ones are recorded. A case that turns out to be disturbed because a later case ran at a faster clock gets more
windows at the end, within the same limit. `kdedge.benchmarks.stability` decides whether the numbers may be quoted.
"""

import functools
import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from kdedge.benchmarks.candidate import Candidate, Runnable
from kdedge.benchmarks.providers import GPUS
from kdedge.benchmarks.session import Model
from kdedge.benchmarks.stability import Reading, Window, disturbances, judge_windows, spin_ms
from kdedge.benchmarks.units import short_provider
from kdedge.machine import cpu_quota, usable_cores
from kdedge.progress import Tracker, track

__all__ = ["MOST_WINDOWS", "WINDOWS", "Measured", "measure_latency", "measure_windows", "run_window", "summarise"]

WINDOWS = 5
MOST_WINDOWS = 3 * WINDOWS

_WARM_UP_CALLS = 3
_WARM_UP_SHARE = 0.1
# With fewer samples, fewer than ten are above the percentile. Every row has a median; `judge_windows` checks the number
# of its samples.
_FEWEST_FOR = {"p50_ms": 1, "p90_ms": 100, "p95_ms": 200, "p99_ms": 1000}
_FIRST_SPINS = 20

_Name = TypeVar("_Name", bound=Hashable)
# A candidate, and whether it is called with input and output on its device.
_Timed = tuple[Candidate, bool]


@dataclass
class Measured:
    """Windows of one candidate, and the warm-up before them.

    Attributes:
        warm_up_calls: Calls before the first window.
        warm_up_ms: Total duration of these calls in milliseconds.
        windows: The windows that count, in the order of measurement.
        earlier: Disturbed windows before them.
    """

    warm_up_calls: int
    warm_up_ms: float
    windows: list[Window] = field(default_factory=list)
    earlier: list[Window] = field(default_factory=list)


@dataclass
class _Case:
    """The measurement of a thread count and a batch size.

    Attributes:
        threads: Intra-op threads.
        batch: Images per call.
        load_ms: Loading time of each candidate in milliseconds.
        first_ms: Duration of the first run of each candidate in milliseconds.
        measured: The windows of each candidate.
    """

    threads: int
    batch: int
    load_ms: dict[Candidate, float]
    first_ms: dict[Candidate, float]
    measured: dict[_Timed, Measured]

    @property
    def windows_so_far(self) -> int:
        """Number of windows of each candidate, including those that do not count."""
        return max(len(found.earlier) + len(found.windows) for found in self.measured.values())

    def replace_windows(self, more: "_Case") -> None:
        """Replace the windows that count by later ones."""
        for name, found in more.measured.items():
            before = self.measured[name]
            found.earlier = [*before.earlier, *before.windows, *found.earlier]
        self.measured = more.measured


def measure_latency(
    candidates: Sequence[Candidate],
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 3.0,
    most_windows: int = WINDOWS,
    spinning: bool = False,
    cores: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure the latency of several models in alternating windows.

    Args:
        candidates: The models and what runs each.
        batches: Batch sizes to measure.
        threads: Intra-op thread counts to measure.
        seconds: Measuring time per candidate, batch size and thread count, split into `WINDOWS` windows.
        most_windows: Maximum number of windows; those beyond `WINDOWS` follow disturbed ones.
        spinning: Let waiting threads spin.
        cores: Cores that this process may use; None: those that the operating system reports.

    Returns:
        The rows of ``latency`` in ``report.json``, by provider, and the raw samples in the same order: the keys of the
        row and ``windows_ms``, a list of calls for each window, and ``earlier_windows_ms``, those that do not count.
        A provider with a device (`kdedge.benchmarks.providers.GPUS`) is also measured with input and output there: its
        rows have ``on_device`` with the same statistics, and the samples ``on_device_windows_ms`` and
        ``on_device_earlier_windows_ms``; the other times of the row include the copies.

    Raises:
        InputError: A model cannot be read.
        StageError: The execution provider could not be started.
    """
    cores, quota = cores or usable_cores(), cpu_quota()
    # The reference is the fastest clock of the whole run: a processor that throttles slowly is steady within each row.
    # Sampled before the first case, so that a fast clock in the second one rarely disqualifies the first.
    spins = [spin_ms() for _ in range(_FIRST_SPINS)]
    pairs = list(itertools.product(threads, batches))

    def disturbed(count: int) -> Callable[[Sequence[Sequence[Window]]], bool]:
        return functools.partial(_disturbed, spins, spinning=spinning and count > 1)

    def measure(count: int, batch: int, done: int = 0) -> _Case:
        """Measure a case that already has ``done`` windows."""
        # Threads of the CPU hardly affect a GPU: one count is enough.
        timed = [candidate for candidate in candidates if candidate.provider not in GPUS or count == threads[0]]
        opened = {candidate: candidate.open(count, spinning=spinning) for candidate in timed}
        calls, first_ms = _calls(opened, batch)
        measured = measure_windows(
            calls,
            seconds,
            most_windows=most_windows - done,
            disturbed=disturbed(count),
            on_window=lambda number: _show(bar, f"batch {batch}, {count} thread{'s' * (count > 1)}", done + number),
        )
        return _Case(count, batch, {key: model.load_ms for key, model in opened.items()}, first_ms, measured)

    providers = dict.fromkeys(candidate.provider for candidate in candidates)
    steps = WINDOWS * sum(2 * len(batches) if key.provider in GPUS else len(pairs) for key in candidates)
    with track(f"latency ({', '.join(map(short_provider, providers))})", steps) as bar:
        cases = [measure(count, batch) for count, batch in pairs]
        for case in cases:
            # Cases below the limit ended quiet by the clock known then.
            done, windows = case.windows_so_far, [found.windows for found in case.measured.values()]
            if most_windows - done >= WINDOWS and disturbed(case.threads)(windows):
                case.replace_windows(measure(case.threads, case.batch, done))

    rows: list[dict[str, Any]] = []
    raw: list[dict[str, Any]] = []
    ordered = [(case, key) for name in providers for case in cases for key in case.load_ms if key.provider == name]
    for case, candidate in ordered:
        judge = functools.partial(
            judge_windows,
            threads=case.threads,
            cores=cores,
            spinning=spinning,
            fastest_spin_ms=min(spins),
            quota=quota,
        )
        found = case.measured[candidate, False]
        keys = {
            "provider": candidate.provider, "model": candidate.model, "batch": case.batch, "threads": case.threads,
        }  # fmt: skip
        row = {
            **keys,
            "cores": cores,
            "spinning": spinning,
            **_statistics(found, case.batch),
            "load_ms": round(case.load_ms[candidate], 3),
            "first_run_ms": round(case.first_ms[candidate], 3),
        }
        samples = {**keys, **_samples(found)}
        if resident := case.measured.get((candidate, True)):
            row["on_device"] = {**_statistics(resident, case.batch), "trust": judge(resident.windows)}
            samples |= {f"on_device_{key}": value for key, value in _samples(resident).items()}
        row["trust"] = judge(found.windows)
        rows.append(row)
        raw.append(samples)
    return rows, raw


def measure_windows(
    calls: Mapping[_Name, Callable[[], object]],
    seconds: float,
    *,
    windows: int = WINDOWS,
    most_windows: int | None = None,
    disturbed: Callable[[Sequence[Sequence[Window]]], bool] = lambda _: False,
    clock: Callable[[], int] = time.perf_counter_ns,
    sense: Callable[[], Reading] = Reading.take,
    on_window: Callable[[int], object] = lambda _: None,
) -> dict[_Name, Measured]:
    """Time calls in windows of fixed duration that alternate between the candidates.

    Args:
        calls: Name to call.
        seconds: Measuring time per candidate in seconds, over ``windows``; every window has at least one call.
        windows: Number of windows per candidate that count.
        most_windows: Maximum number of windows per candidate; None: ``windows``.
        disturbed: Returns whether windows were disturbed, from those of each candidate.
        clock: Returns the time in nanoseconds.
        sense: Reads the state of the machine; called before the first window and after every one.
        on_window: Called after every window with its number, from 1, in its candidate.

    Returns:
        The windows of each candidate, of which the last ``windows`` count, without the warm-up (at least 3 calls and a
        tenth of ``seconds``).
    """
    measured = {name: _warm_up(call, int(_WARM_UP_SHARE * seconds * 1e9), clock) for name, call in calls.items()}
    order = list(calls)
    before = sense()
    for number in range(1, (most_windows or windows) + 1):
        for name in order:
            samples = run_window(calls[name], int(seconds / windows * 1e9), clock)
            after = sense()
            measured[name].windows.append(Window.between(samples, before, after))
            before = after
            on_window(number)
        # ABBA order: a steady drift of the clock cancels out.
        order.reverse()
        if number >= windows and not disturbed([found.windows[-windows:] for found in measured.values()]):
            break
    for found in measured.values():
        found.earlier, found.windows = found.windows[:-windows], found.windows[-windows:]
    return measured


def run_window(
    call: Callable[[], object], duration_ns: int, clock: Callable[[], int] = time.perf_counter_ns
) -> list[float]:
    """Repeat a call for a duration, at least once; return the duration of each call in milliseconds."""
    samples: list[int] = []
    now = clock()
    until = now + duration_ns
    while now < until or not samples:
        # The bookkeeping between two calls is not measured.
        start = clock()
        call()
        now = clock()
        samples.append(now - start)
    return [ns / 1e6 for ns in samples]


def summarise(windows: Sequence[Window], batch: int) -> dict[str, Any]:
    """Return percentiles, mean and throughput of all calls in some windows, and the median of each window.

    A percentile with fewer than ten samples above it is None (p90 below 100 samples, p95 below 200, p99 below 1000).

    Args:
        windows: At least one window with at least one sample.
        batch: Images per call.
    """
    samples = np.concatenate([window.samples_ms for window in windows])
    mean_ms = float(samples.mean())
    return {
        **{
            key: round(float(np.percentile(samples, int(key[1:3]))), 5) if len(samples) >= fewest else None
            for key, fewest in _FEWEST_FOR.items()
        },
        "mean_ms": round(mean_ms, 5),
        "throughput_ips": round(1000 * batch / mean_ms, 2),
        "samples": len(samples),
        "window_p50_ms": [round(float(np.median(window.samples_ms)), 5) for window in windows],
    }


def _calls(
    opened: Mapping[Candidate, Runnable], batch: int
) -> tuple[dict[_Timed, Callable[[], object]], dict[Candidate, float]]:
    """Return the calls, and the duration of the first run of each model in milliseconds."""
    rng = np.random.default_rng(0)
    calls: dict[_Timed, Callable[[], object]] = {}
    first_ms = {}
    for candidate, model in opened.items():
        inputs = model.spec.random(batch, rng)
        calls[candidate, False] = model.caller(inputs)
        start = time.perf_counter_ns()
        model.logits(inputs)  # checks errors and result
        first_ms[candidate] = (time.perf_counter_ns() - start) / 1e6
        if candidate.provider in GPUS and isinstance(model, Model):
            calls[candidate, True] = model.device_caller(inputs)
    return calls, first_ms


def _warm_up(call: Callable[[], object], duration_ns: int, clock: Callable[[], int]) -> Measured:
    start = now = clock()
    done = 0
    while done < _WARM_UP_CALLS or now - start < duration_ns:
        call()
        done += 1
        now = clock()
    return Measured(done, (now - start) / 1e6)


def _disturbed(spins: list[float], candidates: Sequence[Sequence[Window]], *, spinning: bool) -> bool:
    """Return whether the windows of any candidate were disturbed, relative to the fastest clock so far.

    Adds the fixed loops of the windows to ``spins``, those of the run so far.
    """
    spins += [window.spin_ms for windows in candidates for window in windows if window.spin_ms is not None]
    return any(
        disturbances(windows, spinning=spinning, fastest_spin_ms=min(spins, default=None))[0] for windows in candidates
    )


def _show(bar: Tracker, case: str, number: int) -> None:
    """Show a measured window; only the planned ones are progress."""
    planned = number <= WINDOWS
    bar.advance(int(planned), case if planned else f"{case}, disturbed: measuring more")


def _statistics(measured: Measured, batch: int) -> dict[str, Any]:
    return {
        **summarise(measured.windows, batch),
        "earlier_windows": len(measured.earlier),
        "warm_up_calls": measured.warm_up_calls,
        "warm_up_ms": round(measured.warm_up_ms, 3),
    }


def _samples(measured: Measured) -> dict[str, list[list[float]]]:
    return {
        key: [[round(ms, 5) for ms in window.samples_ms] for window in windows]
        for key, windows in (("windows_ms", measured.windows), ("earlier_windows_ms", measured.earlier))
    }

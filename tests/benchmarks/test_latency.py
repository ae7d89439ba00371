import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.latency import (
    NOISY,
    STEADY,
    CpuTimes,
    Window,
    judge_windows,
    measure_latency,
    measure_windows,
    summarise,
)
from pipeline.config import parse_counts
from pipeline.errors import InputError


class FakeTime:
    """A clock that only calls move forward."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now_ns

    def call(self, name: str, *durations_ms: float) -> Callable[[], None]:
        durations = itertools.cycle(durations_ms)

        def run() -> None:
            self.log.append(name)
            self.now_ns += int(next(durations) * 1e6)

        return run


def windows_of(*medians_ms: float, samples: int = 200, load: float | None = 0.0) -> list[Window]:
    return [Window([median] * samples, load) for median in medians_ms]


def test_windows_alternate_and_last_as_long_as_asked() -> None:
    fake = FakeTime()
    measured = measure_windows(
        {"fp32": fake.call("fp32", 4), "int8": fake.call("int8", 1)},
        seconds=1.0,
        clock=fake.clock,
        load=lambda: None,
    )
    assert [len(window.samples_ms) for window in measured["fp32"]] == [50] * 5
    assert [len(window.samples_ms) for window in measured["int8"]] == [200] * 5
    assert {ms for window in measured["int8"] for ms in window.samples_ms} == {1.0}
    order = [name for name, _ in itertools.groupby(fake.log)]
    # Two warm-ups, then windows in ABBA order: equal neighbours melt into one group.
    assert order == ["fp32", "int8", "fp32", "int8", "fp32", "int8", "fp32", "int8"]


def test_warm_up_is_left_out() -> None:
    fake = FakeTime()
    calls = iter([500.0, 400.0, 300.0] + [1.0] * 10_000)

    def slow_start() -> None:
        fake.now_ns += int(next(calls) * 1e6)

    (windows,) = measure_windows({"int8": slow_start}, 0.5, clock=fake.clock, load=lambda: None).values()
    assert {ms for window in windows for ms in window.samples_ms} == {1.0}


def test_every_window_has_a_sample_however_slow_the_call() -> None:
    fake = FakeTime()
    measured = measure_windows({"fp32": fake.call("fp32", 9000)}, 0.1, clock=fake.clock, load=lambda: None)
    assert [len(window.samples_ms) for window in measured["fp32"]] == [1] * 5


def test_percentiles_and_throughput() -> None:
    row = summarise([Window([float(ms) for ms in range(1, 1002)])], batch=8)
    assert (row["p50_ms"], row["p90_ms"], row["p99_ms"], row["mean_ms"]) == (501, 901, 991, 501)
    assert row["samples"] == 1001
    assert row["throughput_ips"] == pytest.approx(8 * 1000 / 501, abs=0.01)


@pytest.mark.parametrize(
    ("samples", "p90", "p99"), [(99, False, False), (100, True, False), (999, True, False), (1000, True, True)]
)
def test_percentiles_need_samples(samples: int, p90: bool, p99: bool) -> None:
    row = summarise([Window([1.0] * samples)], batch=1)
    assert row["p50_ms"] == 1
    assert (row["p90_ms"] is not None, row["p99_ms"] is not None) == (p90, p99)


def test_quiet_windows_are_steady() -> None:
    trust = judge_windows(windows_of(1.0, 1.01, 0.99, 1.0, 1.02, load=0.02), threads=1, cores=2)
    assert (trust["verdict"], trust["reasons"]) == (STEADY, [])
    assert trust["window_spread_pct"] == pytest.approx(3.0)
    assert trust["other_load_pct"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("windows", "threads", "evidence"),
    [
        (windows_of(1.0, 1.0, 1.3), 1, "differ by 30 %"),
        (windows_of(1.0, 1.0, 1.0, load=0.5), 1, "other processes used 50 % of the CPU"),
        (windows_of(1.0, 1.0, samples=10), 1, "only 20 samples"),
        (windows_of(1.0, 1.0), 4, "4 threads on 2 cores"),
    ],
)
def test_evidence_makes_numbers_noisy(windows: list[Window], threads: int, evidence: str) -> None:
    trust = judge_windows(windows, threads, cores=2)
    assert trust["verdict"] == NOISY
    assert len(trust["reasons"]) == 1
    assert evidence in trust["reasons"][0]


def test_unknown_load_is_no_evidence() -> None:
    trust = judge_windows(windows_of(1.0, 1.0, load=None), threads=1, cores=2)
    assert (trust["verdict"], trust["other_load_pct"]) == (STEADY, None)


def test_load_of_others_excludes_our_own() -> None:
    before = CpuTimes(wall_s=10, machine_s=100, own_s=5, cores=2)
    after = CpuTimes(wall_s=11, machine_s=101.5, own_s=6, cores=2)
    assert after.others_since(before) == pytest.approx(0.25)
    assert CpuTimes(10.05, 100, 5, 2).others_since(before) is None
    now = CpuTimes.now()
    assert now is not None
    assert now.machine_s > 0


def test_real_models_give_rows_and_raw_samples(models: dict[str, Path]) -> None:
    pair = {name: models[name] for name in ("fp32", "int8")}
    start = time.perf_counter()
    rows, raw = measure_latency(pair, batches=[1, 4], threads=[1], seconds=0.1)
    assert time.perf_counter() - start < 5
    assert [(row["model"], row["batch"]) for row in rows] == [("fp32", 1), ("int8", 1), ("fp32", 4), ("int8", 4)]
    for row, samples in zip(rows, raw, strict=True):
        assert sum(len(window) for window in samples["windows_ms"]) == row["samples"]
        assert len(samples["windows_ms"]) == 5
        assert row["load_ms"] > 0
        assert row["first_run_ms"] > 0
        assert row["p50_ms"] > 0


def test_more_threads_than_cores_is_said(models: dict[str, Path]) -> None:
    rows, _ = measure_latency({"int8": models["int8"]}, threads=[2], seconds=0.05, cores=1)
    assert "2 threads on 1 core" in rows[0]["trust"]["reasons"]


def test_lists_of_counts() -> None:
    assert parse_counts("1, 8,32,8", "--latency-batches", 64) == [1, 8, 32]
    for text in ("", "1,", "0", "65", "1.5", "-1", "two"):
        with pytest.raises(InputError, match="--latency-batches"):
            parse_counts(text, "--latency-batches", 64)

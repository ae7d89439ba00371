import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kdedge.benchmarks.candidate import onnx_candidates
from kdedge.benchmarks.latency import measure_latency, measure_windows, run_window, summarise
from kdedge.benchmarks.providers import CPU, GPUS
from kdedge.benchmarks.session import session_options
from kdedge.benchmarks.stability import NOISY, Reading, Window


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


def test_windows_alternate_and_last_as_long_as_asked() -> None:
    fake = FakeTime()
    measured = measure_windows(
        {"fp32": fake.call("fp32", 4), "int8": fake.call("int8", 1)},
        seconds=1.0,
        clock=fake.clock,
        sense=Reading,
    )
    assert [len(window.samples_ms) for window in measured["fp32"].windows] == [50] * 5
    assert [len(window.samples_ms) for window in measured["int8"].windows] == [200] * 5
    assert {ms for window in measured["int8"].windows for ms in window.samples_ms} == {1.0}
    order = [name for name, _ in itertools.groupby(fake.log)]
    # Two warm-ups, then windows in ABBA order: equal neighbours melt into one group.
    assert order == ["fp32", "int8", "fp32", "int8", "fp32", "int8", "fp32", "int8"]


def test_warm_up_is_left_out_and_told() -> None:
    fake = FakeTime()
    calls = iter([500.0, 400.0, 300.0] + [1.0] * 10_000)

    def slow_start() -> None:
        fake.now_ns += int(next(calls) * 1e6)

    (measured,) = measure_windows({"int8": slow_start}, 0.5, clock=fake.clock, sense=Reading).values()
    assert {ms for window in measured.windows for ms in window.samples_ms} == {1.0}
    assert (measured.warm_up_calls, measured.warm_up_ms) == (3, 1200.0)


def test_warm_up_takes_a_tenth_of_the_time() -> None:
    fake = FakeTime()
    (measured,) = measure_windows({"int8": fake.call("int8", 1)}, 2.0, clock=fake.clock, sense=Reading).values()
    assert (measured.warm_up_calls, measured.warm_up_ms) == (200, 200.0)


def test_each_window_gets_the_readings_around_it() -> None:
    fake = FakeTime()
    spins = iter([3.0, 1.0, 1.5, 2.0, 2.5])
    measured = measure_windows(
        {"fp32": fake.call("fp32", 1), "int8": fake.call("int8", 1)},
        seconds=0.1,
        windows=2,
        clock=fake.clock,
        sense=lambda: Reading(spin_ms=next(spins)),
    )
    # In the order of time: fp32, int8, then int8, fp32.
    assert [window.spin_ms for window in measured["fp32"].windows] == [1.0, 2.0]  # between 3.0 and 1.0, 2.0 and 2.5
    assert [window.spin_ms for window in measured["int8"].windows] == [1.0, 1.5]


def test_every_window_has_a_sample_however_slow_the_call() -> None:
    fake = FakeTime()
    measured = measure_windows({"fp32": fake.call("fp32", 9000)}, 0.1, clock=fake.clock, sense=Reading)
    assert [len(window.samples_ms) for window in measured["fp32"].windows] == [1] * 5


def test_windows_are_added_until_the_last_ones_are_quiet() -> None:
    fake = FakeTime()
    # The second window of int8 lies between the third and the fourth reading.
    spins = itertools.chain([1.0, 1.0, 9.0, 9.0], itertools.repeat(1.0))
    looked: list[int] = []

    def disturbed(candidates: Sequence[Sequence[Window]]) -> bool:
        looked.extend(map(len, candidates))
        return any(window.spin_ms == 9.0 for windows in candidates for window in windows)

    measured = measure_windows(
        {"fp32": fake.call("fp32", 4), "int8": fake.call("int8", 1)},
        seconds=0.06,
        windows=3,
        most_windows=9,
        disturbed=disturbed,
        clock=fake.clock,
        sense=lambda: Reading(spin_ms=next(spins)),
    )
    assert [window.spin_ms for window in measured["int8"].earlier] == [1.0, 9.0]
    assert [window.spin_ms for window in measured["int8"].windows] == [1.0, 1.0, 1.0]
    assert (len(measured["fp32"].earlier), len(measured["fp32"].windows)) == (2, 3)
    assert looked == [3] * 6  # both models after the third, fourth and fifth round


@pytest.mark.parametrize(("most", "windows"), [(None, 3), (3, 3), (7, 7)])
def test_windows_that_stay_disturbed_come_to_an_end(most: int | None, windows: int) -> None:
    fake = FakeTime()
    numbers: list[int] = []
    (measured,) = measure_windows(
        {"int8": fake.call("int8", 1)},
        seconds=0.03,
        windows=3,
        most_windows=most,
        disturbed=lambda _: True,
        clock=fake.clock,
        sense=Reading,
        on_window=numbers.append,
    ).values()
    assert (len(measured.earlier), len(measured.windows)) == (windows - 3, 3)
    assert numbers == list(range(1, windows + 1))


def test_a_row_tells_how_many_windows_were_disturbed(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdedge.benchmarks.stability._MOST_CLOCK_CHANGE", -1.0)  # no clock is steady enough
    (row,), (samples,) = measure_latency(onnx_candidates({"int8": models["int8"]}), seconds=0.05, most_windows=7)
    assert row["earlier_windows"] == 2
    assert (len(samples["earlier_windows_ms"]), len(samples["windows_ms"])) == (2, 5)
    assert sum(map(len, samples["windows_ms"])) == row["samples"]
    assert row["trust"]["verdict"] == NOISY


@pytest.mark.parametrize(
    ("most", "earlier", "slower_pct"),
    [(15, 5, 0.0), (10, 5, 0.0), (9, 0, 20.0)],
    ids=["measured again", "up to the limit", "no windows left"],
)
def test_a_case_is_measured_again_if_only_a_later_one_shows_the_fastest_clock(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, most: int, earlier: int, slower_pct: float
) -> None:
    # Six readings of the first case, then a faster clock.
    spins = itertools.chain(itertools.repeat(0.30, 6), itertools.repeat(0.25))
    monkeypatch.setattr("kdedge.benchmarks.latency.spin_ms", lambda: 0.30)
    monkeypatch.setattr("kdedge.benchmarks.stability.spin_ms", lambda: next(spins))
    monkeypatch.setattr("kdedge.benchmarks.stability.throttle_count", lambda: None)
    monkeypatch.setattr("kdedge.benchmarks.stability._MOST_SPREAD", math.inf)
    monkeypatch.setattr("kdedge.benchmarks.stability._MOST_OTHER_LOAD", math.inf)
    rows, samples = measure_latency(
        onnx_candidates({"int8": models["int8"]}), batches=[1, 4], seconds=0.05, most_windows=most
    )
    assert [row["batch"] for row in rows] == [1, 4]
    assert [row["earlier_windows"] for row in rows] == [earlier, 0]
    assert [len(case["earlier_windows_ms"]) for case in samples] == [earlier, 0]
    assert [row["trust"]["clock_change_pct"] for row in rows] == [slower_pct, 0.0]
    assert sum(map(len, samples[0]["windows_ms"])) == rows[0]["samples"]


def test_time_between_calls_is_in_no_sample() -> None:
    fake = FakeTime()

    def clock() -> int:
        # Every look at the clock takes 1 ms: one lies inside each sample, the other between them.
        fake.now_ns += 1_000_000
        return fake.now_ns

    assert set(run_window(fake.call("int8", 5), 100_000_000, clock)) == {6.0}


def test_percentiles_and_throughput() -> None:
    row = summarise([Window([float(ms) for ms in range(1, 1002)])], batch=8)
    assert (row["p50_ms"], row["p90_ms"], row["p95_ms"], row["p99_ms"], row["mean_ms"]) == (501, 901, 951, 991, 501)
    assert row["samples"] == 1001
    assert row["throughput_ips"] == pytest.approx(8 * 1000 / 501, abs=0.01)


@pytest.mark.parametrize(
    ("samples", "known"),
    [(99, []), (100, ["p90"]), (199, ["p90"]), (200, ["p90", "p95"]), (1000, ["p90", "p95", "p99"])],
)
def test_percentiles_need_samples(samples: int, known: list[str]) -> None:
    row = summarise([Window([1.0] * samples)], batch=1)
    assert row["p50_ms"] == 1
    assert [name for name in ("p90", "p95", "p99") if row[f"{name}_ms"] is not None] == known


def test_the_median_of_each_window_is_kept() -> None:
    row = summarise([Window([1.0, 2.0, 9.0]), Window([4.0, 4.0])], batch=1)
    assert row["window_p50_ms"] == [2.0, 4.0]


def test_real_models_give_rows_and_raw_samples(models: dict[str, Path]) -> None:
    pair = {name: models[name] for name in ("fp32", "int8")}
    start = time.perf_counter()
    rows, raw = measure_latency(onnx_candidates(pair), batches=[1, 4], threads=[1], seconds=0.1)
    assert time.perf_counter() - start < 5
    assert [(row["model"], row["batch"]) for row in rows] == [("fp32", 1), ("int8", 1), ("fp32", 4), ("int8", 4)]
    for row, samples in zip(rows, raw, strict=True):
        assert sum(len(window) for window in samples["windows_ms"]) == row["samples"]
        assert len(samples["windows_ms"]) == 5
        assert row["load_ms"] > 0
        assert row["first_run_ms"] > 0
        assert row["p50_ms"] > 0
        assert row["warm_up_calls"] >= 3
        assert row["warm_up_ms"] > 0
        assert len(row["window_p50_ms"]) == 5
        assert row["trust"]["clock_change_pct"] >= 0
        assert "on_device" not in row


def test_input_on_the_device_is_measured_apart(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GPUS, CPU, "cpu")
    (row,), (samples,) = measure_latency(onnx_candidates({"int8": models["int8"]}), seconds=0.05)
    resident = row["on_device"]
    assert resident["samples"] == sum(map(len, samples["on_device_windows_ms"])) > 0
    assert resident["samples"] != row["samples"]
    assert resident["p50_ms"] > 0
    assert resident["trust"]["verdict"]


def test_threads_spin_when_asked(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def options(threads: int, *, spinning: bool) -> object:
        asked.append((threads, spinning))
        return session_options(threads, spinning=spinning)

    monkeypatch.setattr("kdedge.benchmarks.candidate.session_options", options)
    (row,), _ = measure_latency(onnx_candidates({"int8": models["int8"]}), threads=[2], seconds=0.05, spinning=True)
    assert asked == [(2, True)]
    assert row["spinning"] is True
    entry = session_options(2, spinning=True).get_session_config_entry("session.intra_op.allow_spinning")
    assert entry == "1"


def test_more_threads_than_cores_is_said(models: dict[str, Path]) -> None:
    rows, _ = measure_latency(onnx_candidates({"int8": models["int8"]}), threads=[2], seconds=0.05, cores=1)
    assert "2 threads on 1 core" in rows[0]["trust"]["reasons"]

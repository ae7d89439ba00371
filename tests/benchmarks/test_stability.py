import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdedge.benchmarks.affinity import pinned
from kdedge.benchmarks.candidate import onnx_candidates
from kdedge.benchmarks.latency import measure_latency
from kdedge.benchmarks.stability import (
    NOISY,
    STEADY,
    CpuTimes,
    Reading,
    Window,
    judge_windows,
    spin_ms,
    throttle_count,
)


def windows_of(*medians_ms: float, samples: int = 200, load: float | None = 0.0) -> list[Window]:
    return [Window([median] * samples, load) for median in medians_ms]


def test_quiet_windows_are_steady() -> None:
    stability = judge_windows(windows_of(1.0, 1.01, 0.99, 1.0, 1.02, load=0.02), threads=1, cores=2)
    assert (stability["verdict"], stability["reasons"]) == (STEADY, [])
    assert stability["window_spread_pct"] == pytest.approx(3.0)
    assert stability["other_load_pct"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("windows", "threads", "evidence"),
    [
        (windows_of(1.0, 1.0, 1.3), 1, "differ by 30.0 % (at most 10 %)"),
        (windows_of(1.0, 1.0, 1.0, load=0.5), 1, "other processes used 50.0 % of the CPU"),
        (windows_of(1.0, 1.0, samples=10), 1, "only 20 samples"),
        (windows_of(1.0, 1.0), 4, "4 threads on 2 cores"),
    ],
)
def test_evidence_makes_numbers_noisy(windows: list[Window], threads: int, evidence: str) -> None:
    stability = judge_windows(windows, threads, cores=2)
    assert stability["verdict"] == NOISY
    assert len(stability["reasons"]) == 1
    assert evidence in stability["reasons"][0]


def test_unknown_load_is_no_evidence() -> None:
    stability = judge_windows(windows_of(1.0, 1.0, load=None), threads=1, cores=2)
    assert (stability["verdict"], stability["other_load_pct"]) == (STEADY, None)
    assert (stability["clock_change_pct"], stability["throttle_events"]) == (None, None)


def test_windows_too_short_to_see_other_load_are_not_steady() -> None:
    stability = judge_windows(windows_of(0.25, 0.25, samples=200, load=None), threads=1, cores=2)
    assert (stability["verdict"], stability["other_load_pct"]) == (NOISY, None)
    assert stability["reasons"] == [
        "windows of 0.05 s are too short to see other load (at least 0.1 s): raise --latency-seconds"
    ]
    seen = judge_windows(windows_of(0.25, 0.25, samples=200, load=0.0), threads=1, cores=2)
    assert seen["verdict"] == STEADY  # the readings lay further apart than the samples add up to


def test_a_lower_clock_makes_numbers_noisy() -> None:
    windows = [Window([1.0] * 200, spin_ms=spin) for spin in (0.30, 0.31, 0.36)]
    stability = judge_windows(windows, threads=1, cores=2)
    assert stability["verdict"] == NOISY
    assert "a fixed loop took 20.0 % longer than at its fastest" in stability["reasons"][0]
    assert stability["clock_change_pct"] == pytest.approx(20)


def test_an_excess_that_is_small_is_not_rounded_away() -> None:
    windows = [Window([1.0] * 200, spin_ms=spin) for spin in (0.30, 0.3312)]
    (reason,) = judge_windows(windows, threads=1, cores=2)["reasons"]
    assert "took 10.4 % longer than at its fastest (at most 10 %)" in reason


def test_a_clock_that_fell_before_these_windows_is_seen() -> None:
    windows = [Window([1.0] * 200, spin_ms=0.45)] * 5
    assert judge_windows(windows, 1, 2)["verdict"] == STEADY
    stability = judge_windows(windows, 1, 2, fastest_spin_ms=0.30)
    assert (stability["verdict"], stability["clock_change_pct"]) == (NOISY, 50)


def test_heat_makes_numbers_noisy() -> None:
    windows = [Window([1.0] * 200, throttles=count) for count in (0, 2, 1)]
    stability = judge_windows(windows, threads=1, cores=2)
    assert stability["reasons"] == ["the processor was throttled by heat: cool it"]
    assert stability["throttle_events"] == 3


@pytest.mark.parametrize(("threads", "spinning", "verdict"), [(2, True, NOISY), (2, False, STEADY), (1, True, STEADY)])
def test_spinning_threads_bear_less_load(threads: int, spinning: bool, verdict: str) -> None:
    stability = judge_windows(windows_of(1.0, 1.0, load=0.05), threads, 2, spinning=spinning)
    assert stability["verdict"] == verdict
    assert ("at most 3 % with spinning threads" in " ".join(stability["reasons"])) is (verdict == NOISY)


def test_a_window_lies_between_two_readings() -> None:
    before = Reading(CpuTimes(10, 5, (50, 50), (0, 1)), throttles=7, spin_ms=0.3)
    after = Reading(CpuTimes(11, 6, (51, 50.5), (0, 1)), throttles=9, spin_ms=0.4)
    window = Window.between([1.0], before, after)
    assert (window.other_load, window.spin_ms, window.throttles) == (pytest.approx(0.25), 0.3, 2)
    assert Window.between([1.0], Reading(), after) == Window([1.0], None, 0.4, None)


def test_the_fixed_loop_counts_its_fastest_run() -> None:
    durations_us = [500, 400, 300, 900, 400, 400, 400, 400, 400, 400]
    ticks = (us for number, last in enumerate(durations_us) for us in (1000 * number, 1000 * number + last))
    assert spin_ms(lambda: next(ticks) * 1000) == pytest.approx(0.3)
    assert spin_ms() > 0


def test_counters_of_throttling_are_added_up(tmp_path: Path) -> None:
    assert throttle_count(tmp_path) is None
    sysfs = tmp_path / "cpu"
    for cpu, core, package in (("cpu0", "3", "1"), ("cpu1", "4", "unreadable")):
        folder = sysfs / cpu / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{core}\n")
        (folder / "package_throttle_count").write_text(f"{package}\n")
        (folder / "core_throttle_total_time_ms").write_text("1000\n")
    assert throttle_count(sysfs) == 8


def test_load_of_others_excludes_our_own() -> None:
    before = CpuTimes(wall_s=10, own_s=5, busy_s=(50, 50), usable=(0, 1))
    after = CpuTimes(wall_s=11, own_s=6, busy_s=(51, 50.5), usable=(0, 1))
    assert after.others_since(before) == pytest.approx(0.25)
    assert CpuTimes(10.05, 5, (50, 50), (0, 1)).others_since(before) is None
    assert CpuTimes(11, 6, (51, 50, 9), (0, 1, 2)).others_since(before) is None


@pytest.mark.parametrize(
    ("busy_s", "share"),
    [((51, 50), 0.5), ((50.5, 51), 0.5), ((50.5, 50), 0.0)],
    ids=["on our CPU", "on the other CPU", "nowhere"],
)
def test_load_counts_on_our_cpu_and_beside_it(busy_s: tuple[float, ...], share: float) -> None:
    before = CpuTimes(wall_s=10, own_s=5, busy_s=(50, 50), usable=(0,))
    after = CpuTimes(wall_s=11, own_s=5.5, busy_s=busy_s, usable=(0,))
    assert after.others_since(before) == pytest.approx(share)


def test_counters_of_this_machine() -> None:
    now = CpuTimes.now()
    assert now is not None
    assert sum(now.busy_s) > 0
    assert len(now.usable) <= len(now.busy_s)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a CPU")
def test_a_process_that_burns_the_core_makes_numbers_noisy(models: dict[str, Path]) -> None:
    cpu = min(os.sched_getaffinity(0))
    with pinned([cpu]):
        (quiet,), _ = measure_latency(onnx_candidates({"int8": models["int8"]}), seconds=1.0)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as burner:
            try:
                (disturbed,), _ = measure_latency(onnx_candidates({"int8": models["int8"]}), seconds=1.5)
            finally:
                burner.kill()
    load = disturbed["trust"]["other_load_pct"]
    assert disturbed["trust"]["verdict"] == NOISY
    assert load > 25
    assert any("other processes used" in reason for reason in disturbed["trust"]["reasons"])
    if quiet["trust"]["other_load_pct"] > 10:
        pytest.skip(f"noisy with the burner ({load} %), but this machine is not quiet without it either")


def test_a_cpu_quota_below_the_threads_is_named() -> None:
    windows = windows_of(1.0, 1.0, load=0.0)
    assert judge_windows(windows, threads=2, cores=2, quota=2.0)["verdict"] == STEADY
    (reason,) = judge_windows(windows, threads=1, cores=1, quota=0.3)["reasons"]
    assert reason.startswith("the kernel throttles this process: its CPU quota is 0.3 CPUs, and 1 thread can use 1")

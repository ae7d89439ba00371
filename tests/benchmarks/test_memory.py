"""Memory of a fresh process, memory limit and CPU affinity."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdedge.benchmarks import memory
from kdedge.benchmarks.affinity import check_cpus, pinned
from kdedge.benchmarks.memory import measure_memory
from kdedge.errors import InputError
from kdedge.machine import usable_cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and resource limits of Linux")
MIB = 1 << 20


@linux
def test_peak_memory_of_each_model(models: dict[str, Path]) -> None:
    # What this process holds must not count: it is inherited in ru_maxrss.
    ballast = bytearray(os.urandom(MIB) * 300)
    rows = measure_memory({name: models[name] for name in ("fp32", "int8")}, threads=1)
    assert len(ballast) == 300 * MIB
    assert [row["model"] for row in rows] == ["fp32", "int8"]
    for row in rows:
        assert 10 * MIB < row["baseline_bytes"] < row["peak_rss_bytes"] < 300 * MIB
        assert row["reason"] is None
        assert (row["limit_mib"], row["within_limit"]) == (None, None)


@linux
@pytest.mark.parametrize(("limit", "within"), [(8, False), (2000, True)])
def test_a_limit_is_kept_or_not(models: dict[str, Path], limit: int, within: bool) -> None:
    (row,) = measure_memory({"int8": models["int8"]}, limit_mib=limit)
    assert (row["limit_mib"], row["within_limit"]) == (limit, within)
    assert (row["limit_reason"] is None) is within
    assert row["peak_rss_bytes"] > 0


@linux
def test_the_process_holds_neither_kdedge_nor_what_else_it_needs(models: dict[str, Path]) -> None:
    code = (
        "import runpy, sys; sys.argv[:] = ['program', sys.argv[2], '1', '0'] if len(sys.argv) > 2 else sys.argv; "
        f"runpy.run_path({str(memory._PROGRAM)!r}, run_name='__main__'); "
        "print(sorted({'pipeline', 'benchmarks', 'torch', 'onnx', 'rich', 'psutil'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-P", "-c", code, "x", str(models["int8"])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_process_that_fails_is_a_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    (row,) = measure_memory({"int8": broken}, limit_mib=2000 if sys.platform == "linux" else 0)
    assert row["peak_rss_bytes"] is None
    assert row["reason"].startswith("the process ended with exit code 1: ")
    assert row["within_limit"] is None


def test_a_system_that_does_not_tell_is_a_reason(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_run", lambda *_: ({"peak_rss_bytes": None, "baseline_bytes": None}, ""))
    (row,) = measure_memory({"int8": models["int8"]})
    assert "does not report the peak memory" in row["reason"]


def test_a_process_that_hangs_is_a_reason(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_TIMEOUT_S", 0.001)
    (row,) = measure_memory({"int8": models["int8"]})
    assert "could not be run" in row["reason"]


def test_a_limit_needs_linux(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    with pytest.raises(InputError, match="--memory-limit needs Linux, this is darwin"):
        measure_memory({"int8": models["int8"]}, limit_mib=64)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a CPU")
def test_pinned_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    cpu = max(before)

    def fail() -> None:
        with pinned([cpu]):
            assert usable_cores() == 1
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fail()
    assert os.sched_getaffinity(0) == before
    with pinned([]):
        assert os.sched_getaffinity(0) == before
    with pytest.raises(InputError, match="CPU 9999 is not available to this process"):
        check_cpus([cpu, 9999])


def test_a_system_without_affinity_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(InputError, match="cannot bind a process to CPUs"):
        check_cpus([0])
    check_cpus([])

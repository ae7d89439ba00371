"""Cells that are trained in parallel, each in its own process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from studies import kdedge, read, small

from kdedge.pipeline.config import Config
from kdedge.pipeline.run_dir import lock_run
from kdedge.pipeline.study import compare, training
from kdedge.pipeline.training import device as runtime
from kdedge.pipeline.training.options import RuntimeConfig


def student(out, method):
    return (out / "e2" / "seed0" / method / "distill" / "student.safetensors").read_bytes()


def test_a_run_that_fails_ends_the_study_and_runs_at_once_give_the_students_of_runs_one_after_the_other(
    study, compared, tmp_path
):
    with lock_run(tmp_path / "e2" / "seed0" / "kd"):
        result = kdedge(*small(study, tmp_path, "--jobs", 2, methods="ce,kd"), code=2)
    assert "is in use by another" in result.stderr
    kdedge(*small(study, tmp_path, "--jobs", 2, methods="selective,ce,kd"))
    assert [row["method"] for row in read(tmp_path / "evaluation_results.csv")] == ["ce", "kd", "selective"]
    for method in ("ce", "kd", "selective"):
        assert student(tmp_path, method) == student(study[0], method)


@pytest.mark.slow
def test_a_run_that_diverges_is_recorded_and_those_beside_it_go_on(study, compared, tmp_path):
    result = kdedge(*small(study, tmp_path, "--jobs", 2, "--lr", 10, "--alpha", 1000, methods="ce,kd"))
    status = {row["method"]: row["status"] for row in read(tmp_path / "evaluation_results.csv")}
    assert status["kd"] == "diverged"
    assert "warning: kd, 2 epochs, seed 0: stage distill: " in result.stderr
    assert "ce, 2 epochs, seed 0: " in result.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_the_system_refuses_to_a_run_is_said_as_without_processes(study, compared, tmp_path, jobs):
    (tmp_path / "e2" / "seed0").mkdir(parents=True)
    (tmp_path / "e2" / "seed0" / "kd").touch()
    result = kdedge(*small(study, tmp_path, "--jobs", jobs, methods="kd"), code=2)
    assert f"{tmp_path / 'e2' / 'seed0' / 'kd'}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_process_that_is_killed_ends_the_study(study, compared, tmp_path, monkeypatch):
    def kill_one(*_):
        for process in multiprocessing.active_children()[:1]:
            process.kill()
        return 0

    monkeypatch.setattr(training, "_epochs", kill_one)
    result = kdedge(*small(study, tmp_path, "--jobs", 2, methods="ce,kd"), code=1)
    assert "a process that trained a cell ended unexpectedly" in result.stderr
    assert "fewer --jobs" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_study(study, compared, tmp_path, ending):
    arguments = [str(part) for part in small(study, tmp_path, "--jobs", 2, methods="ce,kd")]
    arguments[arguments.index("--epochs") + 1] = "10000"
    # Where the tests run in the background of a shell, Ctrl-C is ignored from the start.
    program = "import signal; signal.signal(2, signal.default_int_handler); from kdedge.pipeline.cli import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        cells = tmp_path / "e10000" / "seed0"
        wait_for(lambda: len(list(cells.glob("*/.distill.partial/training_log_*.csv"))) == 2)
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if any("multiprocessing.spawn" in part for part in child.cmdline())]
        assert len(workers) == 2
        if ending == signal.SIGINT:
            os.killpg(process.pid, ending)  # as a terminal does
        else:
            process.send_signal(ending)
        wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    _, errors = process.communicate()
    assert "Traceback" not in errors
    if ending == signal.SIGINT:
        assert "run the same command again to resume" in errors


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for five minutes")


def test_runs_at_once_share_the_cores(monkeypatch, tmp_path, capsys):
    for module in (compare, runtime):
        monkeypatch.setattr(module, "usable_cores", lambda: 16)
    for jobs, given, threads in ((4, 0, 4), (30, 0, 1), (4, 2, 2), (4, 8, 8)):
        config = Config(runtime=RuntimeConfig(device="cpu", precision="fp32", threads=given))
        assert compare.resolve_runtime(config, tmp_path, jobs).runtime.threads == threads
        assert ("share 16 cores" in capsys.readouterr().err) == (threads * jobs > 16)

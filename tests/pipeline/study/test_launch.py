"""Where the cells of a study are trained: processes, jobs of Slurm, printed commands; what a kill leaves."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from studies import kdedge, read, small, start, student, wait_for

from kdedge.pipeline.study import compare, launch
from kdedge.pipeline.training import device
from kdedge.pipeline.training.options import RuntimeConfig
from kdedge.progress import log

KILLED = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]


def manifests(out):
    """Return the manifest of each finished cell by its directory: changed if the cell is trained again."""
    found = out.glob("e*/seed*/*/distill/manifest.json")
    return {path.parents[1]: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def workers(process):
    return [child for child in psutil.Process(process.pid).children() if "distill" in child.cmdline()]


def in_training(out):
    return list(out.glob("e*/seed*/*/.distill.partial"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_after_a_killed_worker_and_a_killed_launcher_nothing_is_lost_or_trained_twice(study, compared, tmp_path):
    command = small(study, tmp_path, methods="ce,kd", seeds="0,1")
    process = start([*command, "--jobs", 2])
    wait_for(lambda: in_training(tmp_path))
    wait_for(lambda: workers(process))[0].kill()
    wait_for(lambda: manifests(tmp_path) and workers(process))
    process.kill()
    before = manifests(tmp_path)
    assert "its training ended without a result and starts again" in process.communicate()[1]
    kdedge(*command)
    after = manifests(tmp_path)
    assert len(after) == 4
    assert before.items() <= after.items()
    for seed in (0, 1):
        for method in ("ce", "kd"):
            assert student(tmp_path, method, seed) == student(study[0], method, seed)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces of host names")
def test_the_launcher_of_another_host_completes_what_a_killed_one_began(study, compared, tmp_path):
    command = [*small(study, tmp_path, methods="ce,kd", seeds="0,1"), "--jobs", 1]
    named = ["unshare", "--user", "--map-root-user", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']
    if subprocess.run([*named, "first", "true"], check=False).returncode:
        pytest.skip("no namespaces")
    first, second = (start(command, [*named, name]) for name in ("first", "second"))
    wait_for(lambda: len(in_training(tmp_path)) == 2)
    first.kill()
    shown = second.communicate()[1]
    assert second.returncode == 0, shown
    assert len(manifests(tmp_path)) == len(read(tmp_path / "evaluation_results.csv")) == 4
    for seed in (0, 1):
        for method in ("ce", "kd"):
            assert student(tmp_path, method, seed) == student(study[0], method, seed)


def test_a_cell_in_use_is_waited_for(study, compared, tmp_path, monkeypatch):
    cell = tmp_path / "e2" / "seed0" / "kd"
    cell.mkdir(parents=True)
    lock = FileLock(cell / ".lock")
    lock.acquire()
    monkeypatch.setattr(launch, "log", lambda text: log(text) or ("waiting" in text and lock.release()))
    shown = kdedge(*small(study, tmp_path, methods="ce,kd")).stderr
    assert "waiting for cells that other processes use: 1" in shown
    assert shown.index("ce, 2 epochs, seed 0: ") < shown.index("kd, 2 epochs, seed 0: ")
    assert len(read(tmp_path / "evaluation_results.csv")) == 2


def test_a_worker_that_is_killed_twice_is_reported(study, compared, tmp_path, monkeypatch):
    kdedge(*small(study, tmp_path, methods="ce"))
    monkeypatch.setattr(launch, "_process", lambda cell, out: KILLED)
    result = kdedge(*small(study, tmp_path, "--jobs", 2, methods="ce,kd"), code=1)
    assert result.stderr.count("kd, 2 epochs, seed 0: its training ended without a result") == 2
    assert "1 of 1 cells ended twice without a result, such as kd, 2 epochs, seed 0" in result.stderr
    assert "fewer --jobs" in result.stderr
    assert [row["method"] for row in read(tmp_path / "evaluation_results.csv")] == ["ce"]


@pytest.mark.slow
def test_a_run_that_diverges_is_recorded_and_those_beside_it_go_on(study, compared, tmp_path):
    command = small(study, tmp_path, "--jobs", 2, "--lr", 10, "--alpha", 1000, methods="ce,kd")
    result = kdedge(*command)
    status = {row["method"]: row["status"] for row in read(tmp_path / "evaluation_results.csv")}
    assert status["kd"] == "diverged"
    assert "warning: kd, 2 epochs, seed 0: stage distill: " in result.stderr
    assert "ce, 2 epochs, seed 0: " in result.stderr


def test_what_the_system_refuses_to_a_run_is_said_as_without_processes(study, compared, tmp_path):
    (tmp_path / "e2" / "seed0").mkdir(parents=True)
    (tmp_path / "e2" / "seed0" / "kd").touch()
    result = kdedge(*small(study, tmp_path, "--jobs", 2, methods="kd"), code=2)
    assert f"{tmp_path / 'e2' / 'seed0' / 'kd'}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_processes_end_with_the_study(study, compared, tmp_path, ending):
    command = small(study, tmp_path, "--jobs", 2, methods="ce,kd")
    command[command.index("--epochs") + 1] = 10000
    process = start(command)
    try:
        cells = tmp_path / "e10000" / "seed0"
        wait_for(lambda: len(list(cells.glob("*/.distill.partial/training_log_*.csv"))) == 2)
        trained_by = workers(process)
        assert len(trained_by) == 2
        process.send_signal(ending)
        wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in trained_by))
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    _, errors = process.communicate()
    assert "Traceback" not in errors
    assert "run the same command again to resume" in errors


def test_printed_commands_train_the_cells(study, compared, tmp_path):
    command = [*small(study, tmp_path, methods="ce,kd"), "--launcher", "print"]
    cells = [tmp_path / "e2" / "seed0" / method for method in ("ce", "kd")]
    assert kdedge(*command).stdout.splitlines() == [f"kdedge distill --out {cell}" for cell in cells]
    shard = kdedge(*command, "--shard", "2/2").stdout
    assert shard.splitlines() == [f"kdedge distill --out {cells[1]}"]
    kdedge(*shlex.split(shard)[1:])
    assert student(tmp_path, "kd") == student(study[0], "kd")
    assert kdedge(*command).stdout.splitlines() == [f"kdedge distill --out {cells[0]}"]
    assert [row["method"] for row in read(tmp_path / "evaluation_results.csv")] == ["kd"]
    assert json.loads(kdedge(*command, "--shard", "2/2", "--json").stdout) == {"commands": []}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell")
def test_printed_commands_run_in_xargs_as_documented(study, compared, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "beyond-one-machine.md").read_text()
    (pipe,) = re.findall(r"--launcher print \| (.*xargs.*)", page)
    out = tmp_path / "a study's"
    listed = kdedge(*small(study, out, methods="ce,kd"), "--launcher", "print").stdout
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", pipe], input=listed, text=True, env=environment, check=True)
    assert [student(out, method) for method in ("ce", "kd")] == [student(study[0], method) for method in ("ce", "kd")]


@pytest.mark.slow
def test_submitit_trains_the_cells_and_a_lost_job_is_submitted_again(study, compared, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit, "SlurmExecutor", submitit.LocalExecutor)
    monkeypatch.setattr(launch.shutil, "which", lambda name: name)
    left, honest = [KILLED], launch._process
    monkeypatch.setattr(launch, "_process", lambda cell, out: left.pop() if left else honest(cell, out))
    result = kdedge(*small(study, tmp_path, "--launcher", "slurm", "--slurm", "partition=all"))
    assert "kd, 2 epochs, seed 0: its training ended without a result and starts again" in result.stderr
    assert student(tmp_path, "kd") == student(study[0], "kd")


def test_slurm_is_refused_where_there_is_none(study, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    result = kdedge(*small(study, tmp_path, "--launcher", "slurm"), code=2)
    assert "--launcher slurm: this host has no sbatch" in result.stderr
    assert not tmp_path.joinpath("config.json").exists()


def test_cells_of_another_cpu_are_finished(copied):
    out, command = copied
    for path in out.glob("e2/seed1/*/distill/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["config"]["runtime"]["isa"] = "another"
        path.write_text(json.dumps(manifest))
    assert "6 of 6 cells are finished" in kdedge(*command).stderr


def options(launcher, jobs):
    return compare.StudyOptions(
        "2", "0", None, 85, jobs=jobs, launcher=launcher, shard="1/1", slurm=(), test=False, command="", force=False
    )


def test_runs_at_once_share_the_cores(monkeypatch, tmp_path, capsys):
    for module in (compare, device):
        monkeypatch.setattr(module, "usable_cores", lambda: 16)
    for jobs, given, threads in ((4, 0, 4), (30, 0, 1), (4, 2, 2), (4, 8, 8)):
        wanted = RuntimeConfig(device="cpu", precision="fp32", threads=given)
        assert compare._resolve_runtime(wanted, tmp_path, options("local", jobs)).threads == threads
        assert ("share 16 cores" in capsys.readouterr().err) == (threads * jobs > 16)
    assert compare._resolve_runtime(wanted, tmp_path, options("slurm", 30)).threads == 8


def test_the_launcher_of_a_gpu_on_another_host_needs_none(tmp_path):
    wanted = RuntimeConfig(device="cuda", precision="bf16", threads=1)
    assert compare._resolve_runtime(wanted, tmp_path, options("slurm", 1)).device == "cuda"

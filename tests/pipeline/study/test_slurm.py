"""Cells of a study as jobs of a real Slurm of one node: a lost job, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from slurm_host import missing, one_node
from studies import kdedge, read, small, start, student, wait_for

pytest.importorskip("submitit")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux"),
    pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with one_node(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield


def jobs(state):
    """Return the ids of the jobs in a state."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--states={state}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_slurm_trains_the_cells_and_a_lost_job_is_submitted_again(slurm, study, compared, tmp_path):
    command = small(study, tmp_path, "--launcher", "slurm", "--slurm", "time=10", methods="ce,kd")
    process = start(command)
    wait_for(lambda: list(tmp_path.glob("e2/seed0/*/.distill.partial")))
    lost = wait_for(lambda: jobs("RUNNING"))[0]
    subprocess.run(["scancel", "--signal=KILL", "--full", lost], check=True)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert errors.count("its training ended without a result and starts again") == 1
    assert len(re.findall("jobs of Slurm, such as", errors)) == 2
    assert [row["method"] for row in read(tmp_path / "evaluation_results.csv")] == ["ce", "kd"]
    for method in ("ce", "kd"):
        assert student(tmp_path, method) == student(study[0], method)


def test_an_option_that_sbatch_refuses_is_an_error(slurm, study, compared, tmp_path):
    errors = kdedge(*small(study, tmp_path, "--launcher", "slurm", "--slurm", "partition=none"), code=2).stderr
    assert "invalid partition specified: none" in errors
    assert "check the options --slurm" in errors


def test_ctrl_c_cancels_the_jobs(slurm, study, compared, tmp_path):
    command = small(study, tmp_path, "--launcher", "slurm", methods="ce,kd,selective")
    command[command.index("--epochs") + 1] = 10000
    process = start(command)
    wait_for(lambda: jobs("RUNNING") and jobs("PENDING"))
    process.send_signal(signal.SIGINT)
    assert "run the same command again to resume" in process.communicate()[1]
    deadline = time.monotonic() + 60
    while jobs("RUNNING,PENDING,COMPLETING"):
        assert time.monotonic() < deadline
        time.sleep(0.2)

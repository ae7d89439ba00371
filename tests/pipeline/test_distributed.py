"""One training in several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import several_processes
import torch
from studies import kdedge, read
from tiny import TINY

from kdedge.errors import InputError
from kdedge.manifest import load_manifest
from kdedge.pipeline.training import distributed

TESTS = Path(__file__).resolve().parents[1]
TEACHER = TINY[: TINY.index("--student")]
DISTILL = TINY[TINY.index("--student") : TINY.index("--calibration-images")]


@pytest.fixture
def process(monkeypatch):
    """Make this process one of several in a training."""

    def become(rank, size):
        values = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(distributed._now, "together", True)

    return become


def launched(*arguments):
    """Start PyTorch's launcher."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def torchrun(*arguments):
    """Run a script or module in two processes of one launcher."""
    process = launched("--standalone", "--nproc-per-node=2", *arguments)
    out, errors = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, errors)


def torchrun_of_two_hosts(*arguments):
    """Run a script or module in two processes, each of a launcher of its own, as on two hosts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}", "--rdzv-id=x")
    hosts = [launched(*options, *arguments) for _ in range(2)]
    errors = [host.communicate()[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "".join(errors)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another launcher
    assert (distributed.processes(), distributed.rank(), distributed.size()) == (1, 0, 1)
    assert distributed.share(7) == slice(0, 7)
    assert distributed.parallel(len, torch.nn.Linear(1, 1)) is len
    distributed.dismiss()


def test_the_shares_of_all_processes_are_the_batch(process):
    order = np.random.default_rng(0).permutation(12)
    shares = []
    for rank in range(3):
        process(rank, 3)
        shares.append(order[distributed.share(12)])
    assert [len(part) for part in shares] == [4, 4, 4]
    assert np.concatenate(shares).tolist() == order.tolist()


def test_a_batch_that_cannot_be_shared_equally_is_refused(process):
    process(0, 3)
    with pytest.raises(InputError, match="16 images per step do not divide into equal shares for 3 processes"):
        distributed.share(16)


def test_between_trainings_a_process_is_alone(process, monkeypatch):
    process(1, 2)
    monkeypatch.setattr(distributed._now, "together", False)
    assert (distributed.size(), distributed.share(7)) == (1, slice(0, 7))


def test_other_commands_refuse_several_processes(process, tmp_path, tiny_options, monkeypatch):
    process(0, 2)
    monkeypatch.setattr(distributed, "join", lambda: None)
    for command in (["compare"], ["run-all", "--student", "lite,lite-s"]):
        result = kdedge(*command, *tiny_options[:2], "--image-size", 16, "--out", tmp_path / "run", code=2)
        assert "does not run in the 2 processes of torchrun" in result.output


def test_more_processes_than_gpus_are_refused(process, monkeypatch):
    process(0, 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes on this host share 1 GPUs"):
        distributed.use_own_gpu()


@pytest.mark.slow
def test_two_processes_of_one_or_two_hosts_agree_and_train_as_one(tmp_path):
    alone, together, again = (tmp_path / name for name in ("alone", "together", "again"))
    rows = {network: several_processes.train(alone, network) for network in several_processes.NETWORKS}
    together.mkdir()
    again.mkdir()
    result = torchrun(TESTS / "several_processes.py", together)
    assert result.returncode == 0, result.stderr
    torchrun_of_two_hosts(TESTS / "several_processes.py", again)
    assert json.loads((together / "agreed.json").read_text()) == {
        "mean": 0.5,
        "total": 3,
        "first": 0,
        "parts": [[0, 0], [1, 1], [2, 0], [3, 1], [4, 0]],
        "size in the first": 1,
        "weighted loss": pytest.approx(several_processes._weighted_loss(), rel=1e-6),
        "running mean": [0.5, 0.5],
    }
    distance = {}
    for network in several_processes.NETWORKS:
        one, two, repeated = (torch.load(out / f"{network}.pt") for out in (alone, together, again))
        assert all(torch.equal(two[name], repeated[name]) for name in two)
        assert torch.equal(one["unused"], two["unused"])
        distance[network] = max((one[name] - two[name]).abs().max().item() for name in one)
        log = read(together / network / "log.csv")
        assert len(log) == len(rows[network])
        if network == "plain":
            assert [float(row["train_loss"]) for row in log] == pytest.approx(
                [row["train_loss"] for row in rows[network]], rel=1e-5
            )
    assert distance["plain"] < 1e-6  # of weights up to 0.5: another order of sums
    assert distance["plain"] < distance["norms"]  # statistics of half a batch


@pytest.mark.slow
def test_a_failed_process_ends_the_run_and_the_same_command_resumes_to_the_same_bits(folder_data, tmp_path):
    data = ["--data", f"folder:{folder_data}", *TEACHER, "--device", "cpu", "--threads", 1, "--precision", "fp32"]
    broken, whole = (["teacher", *data, "--out", tmp_path / name] for name in ("broken", "whole"))
    failed = torchrun(TESTS / "failing_process.py", *broken)
    assert failed.returncode != 0
    assert failed.stderr.count("error: the disk of the second process is full") == 1
    alone = kdedge(*broken, code=2)
    assert f"{tmp_path / 'broken'} trains in 2 processes, and this command has 1" in alone.output
    resumed = torchrun("-m", "kdedge", *broken)
    assert resumed.returncode == 0, resumed.stderr
    assert "teacher: resumed after epoch 1" in resumed.stderr
    assert torchrun("-m", "kdedge", *whole).returncode == 0
    weights = [(tmp_path / name / "teacher" / "teacher.safetensors").read_bytes() for name in ("broken", "whole")]
    assert weights[0] == weights[1]
    assert "teacher: up to date, skipped" in kdedge(*whole).output

    distilled = torchrun("-m", "kdedge", "distill", *DISTILL, "--method", "dynamic", "--rechoose-epochs", 1,
                         "--hint-epochs", 1, "--out", tmp_path / "whole")  # fmt: skip
    assert distilled.returncode == 0, distilled.stderr
    assert distilled.stderr.count("epoch 1/3") == distilled.stderr.count("distill: done") == 1
    assert "Warning" not in distilled.stderr
    manifest = load_manifest(tmp_path / "whole" / "distill")
    assert manifest["config"]["runtime"]["processes"] == 2
    assert manifest["facts"]["logits_computed"] > 0.6 * 3 * 6 * 16  # of both processes
    assert len(read(tmp_path / "whole" / "distill" / "training_log_dynamic.csv")) == 3

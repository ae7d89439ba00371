"""What ``auto`` becomes on this machine."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from kdedge import machine
from kdedge.errors import InputError
from kdedge.inputs import inputs_at_once
from kdedge.machine import cpu_info, cpu_quota, linux_cpu, usable_cores
from kdedge.pipeline.training.device import prepare, resolve
from kdedge.pipeline.training.options import RuntimeConfig

STEP_MS = {"fp32": 40.0, "bf16": 10.0}


@pytest.fixture
def measured_steps(monkeypatch):
    """Let steps take as long as `STEP_MS` says, and 30 times as long while ``busy`` says so of the step's number."""
    clock_s, steps, busy = [0.0], [], [lambda step: False]

    class Autocast:
        def __init__(self, device, dtype, enabled):
            steps.append("bf16" if enabled else "fp32")

        def __enter__(self):
            clock_s[0] += STEP_MS[steps[-1]] / 1e3 * (30 if busy[0](len(steps) - 1) else 1)

        def __exit__(self, *error):
            pass

    small = functools.partial(torch.nn.Conv2d, kernel_size=1, bias=False)  # the clock is made up
    monkeypatch.setattr(torch.nn, "Conv2d", lambda inputs, outputs, *_, **__: small(inputs, 1))
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(time, "perf_counter", lambda: clock_s[0])
    return steps, busy


def _precision():
    return resolve(RuntimeConfig(device="cpu", threads=1, precision="auto"), None).precision


def test_auto_precision_is_the_one_with_the_shorter_step(measured_steps):
    steps, _ = measured_steps
    assert _precision() == "bf16"
    assert steps.count("fp32") == steps.count("bf16")


@pytest.mark.parametrize(("first", "last"), [(0, 20), (10, 30), (15, 20), (5, 10)])
def test_a_spell_of_other_work_does_not_change_the_precision(measured_steps, first, last):
    _, busy = measured_steps
    busy[0] = lambda step: first <= step < last
    assert _precision() == "bf16"


@pytest.mark.parametrize(("emulated", "precision"), [(True, "fp32"), (False, "bf16")])
def test_auto_precision_is_not_one_that_a_gpu_emulates(monkeypatch, emulated, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    supported = {True: True, False: not emulated}
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported[including_emulation]
    )
    assert resolve(RuntimeConfig(device="cuda", threads=1, precision="auto"), None).precision == precision


def test_what_a_gpu_trained_stays_what_it_is_on_a_host_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recorded = {"seed": 0, "device": "cuda", "threads": 3, "precision": "bf16", "isa": "another"}
    assert dataclasses.asdict(resolve(RuntimeConfig(), recorded)) == {**recorded, "processes": 1}
    assert resolve(RuntimeConfig(**recorded), None) == RuntimeConfig(**recorded)  # of a study, for a new cell
    assert resolve(RuntimeConfig(device="cpu", threads=1, precision="fp32"), recorded).isa != "another"
    with pytest.raises(InputError, match="finds no CUDA device"):
        prepare(resolve(RuntimeConfig(), recorded))
    with pytest.raises(InputError, match="finds no CUDA device"):
        resolve(RuntimeConfig(device="cuda"), recorded)


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("bf16", True)])
def test_fp32_on_a_gpu_is_not_rounded_to_tf32(monkeypatch, precision, tf32):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    prepare(RuntimeConfig(device="cuda", threads=1, precision=precision))
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    prepare(RuntimeConfig(device="cpu", threads=1, precision=precision))


def test_fewer_large_images_take_the_memory_of_many_small_ones():
    sizes = (16, 32, 64, 128, 224, 512)
    assert [inputs_at_once((size, size, 3), 250, 64) for size in sizes] == [
        250,
        250,
        250,
        62,
        20,
        3,
    ]
    assert [inputs_at_once((size, size, 3), 64, 32) for size in (16, 32, 64, 224, 512)] == [64, 64, 16, 1, 1]


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "30000 100000"}, 0.3),
        # The tightest of the group and those above it; in a container its own path may not be there.
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "150000 100000", "cpu.max": "max 100000"}, 1.5),
        ("0::/docker/123", {"cpu.max": "50000 100000"}, 0.5),
        ("4:memory:/x\n1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (
            "3:name=systemd:/\n2:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            2.5,
        ),
    ],
)
def test_the_quota_of_a_control_group(groups, files, quota, tmp_path):
    (tmp_path / "cgroup").write_text(groups + "\n")
    for name, text in files.items():
        path = tmp_path / "mounts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "mounts") == quota
    assert cpu_quota(tmp_path / "none", tmp_path / "mounts") is None


def test_no_more_cores_are_usable_than_the_quota_keeps_busy(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for quota, cores in ((None, 4), (0.3, 1), (1.0, 1), (2.5, 3), (9.0, 4)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert usable_cores() == cores


LSCPU = SimpleNamespace(stdout="Architecture: aarch64\nModel name:          Cortex-A76\n")


@pytest.mark.parametrize(
    ("lines", "cpu"),
    [
        (["processor\t: 0", "model name\t: AMD EPYC: 9", "flags\t\t: fpu avx2", "processor\t: 1", "flags\t: fpu"],
         ("AMD EPYC: 9", {"fpu", "avx2"})),
        (["processor\t: 0", "Features\t: asimd asimddp", "CPU part\t: 0xd0b"], ("Cortex-A76", {"asimd", "asimddp"})),
        ([], ("Cortex-A76", set())),
    ],
)  # fmt: skip
def test_name_and_flags_of_a_cpu_on_linux(lines, cpu, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: LSCPU)
    assert linux_cpu(lines) == cpu


def test_a_machine_without_lscpu_has_no_name(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert linux_cpu(["Features: asimd"]) == ("", {"asimd"})


def test_the_cpu_is_read_without_py_cpuinfo(monkeypatch):
    monkeypatch.setitem(sys.modules, "cpuinfo", None)
    cpu_info.cache_clear()
    assert cpu_info().flags


@pytest.mark.parametrize(("busy_pct", "threads", "fewer"), [(0, 4, None), (50, 2, None), (50, 4, 2), (100, 4, 1)])
def test_a_loaded_machine_is_named_with_the_threads_that_it_has_left(monkeypatch, capsys, busy_pct, threads, fewer):
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: busy_pct)
    prepare(RuntimeConfig(device="cpu", threads=threads, precision="fp32"))
    found = re.findall(r"of 4 cores: --threads (\d) may train faster", capsys.readouterr().err)
    assert found == ([] if fewer is None else [str(fewer)])

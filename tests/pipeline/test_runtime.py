"""What ``auto`` becomes on this machine."""

import time

import pytest
import torch

from pipeline.config import RuntimeConfig
from pipeline.runtime import resolve

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

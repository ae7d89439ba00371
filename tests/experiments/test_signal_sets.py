"""The converters of public sensor data, on made-up files of their formats."""

from pathlib import Path

import numpy as np
import pytest

from experiments import signal_sets
from experiments.signal_sets import cut, from_har, from_ts, from_ucr, from_watch, main


def watch_content() -> dict[str, object]:
    """Return four subjects with two recordings of two exercises each, whose samples have their recording's number."""
    lengths = [200 + 8 * index for index in range(8)]
    return {
        "X": [np.full((length, 6), index, np.float64) for index, length in enumerate(lengths)],
        "y": np.arange(8) % 2,
        "subject": np.repeat([1.0, 2.0, 3.0, 4.0], 2),
        "y_labels": ["ROW", "PEN"],
        "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
    }


def test_windows_of_a_recording() -> None:
    signal = np.arange(20).reshape(10, 2)
    assert [window[0, 0] for window in cut(signal, 4, 2)] == [0, 4, 8, 12]
    assert [window[0, 0] for window in cut(signal, 4, 4)] == [0, 8]
    assert list(cut(signal, 11, 1)) == []


def test_watch_by_subject() -> None:
    arrays = from_watch(watch_content(), "subject", {3, 4}, 64)
    assert arrays["x"].shape[1:] == (64, 6)
    assert arrays["x"].dtype == np.float32
    assert set(arrays["group"]) == {"subject 1", "subject 2"}
    assert set(arrays["group_test"]) == {f"subject {3 + index // 2}, recording {4 + index}" for index in range(4)}
    recordings = arrays["x_test"][:, 0, 0].astype(int)
    assert arrays["y_test"].tolist() == [["ROW", "PEN"][number % 2] for number in recordings]
    # 64 of 232 samples without overlap, 64 of 200 with a stride of 32.
    assert np.bincount(recordings)[4] == 3
    assert (arrays["x"][:, 0, 0] == 0).sum() == 5
    assert arrays["channels"].tolist() == ["ax", "ay", "az", "wx", "wy", "wz"]


def test_watch_at_random_has_no_groups_and_no_overlap() -> None:
    arrays = from_watch(watch_content(), "random", {3, 4}, 64)
    assert "group" not in arrays
    assert len(arrays["x"]) + len(arrays["x_test"]) == sum((200 + 8 * index) // 64 for index in range(8))
    assert set(arrays["x_test"][:, 0, 0]) & set(arrays["x"][:, 0, 0])


def har_folder(root: Path) -> Path:
    """Write a tree with the layout of UCI HAR: 4 training and 2 test windows of 5 samples."""
    (root / "train" / "Inertial Signals").mkdir(parents=True)
    (root / "test" / "Inertial Signals").mkdir(parents=True)
    (root / "activity_labels.txt").write_text("1 WALKING\n2 LAYING\n")
    for part, count in (("train", 4), ("test", 2)):
        for number, signal in enumerate(signal_sets._HAR_SIGNALS):
            rows = [
                " ".join(f"{number + window / 10 + sample / 100: .7e}" for sample in range(5))
                for window in range(count)
            ]
            (root / part / "Inertial Signals" / f"{signal}_{part}.txt").write_text(
                "\n".join(f"  {row}" for row in rows)
            )
        (root / part / f"y_{part}.txt").write_text("".join(f"{1 + window % 2}\n" for window in range(count)))
        (root / part / f"subject_{part}.txt").write_text(f"{7 if part == 'test' else 1}\n" * count)
    return root


def test_har(tmp_path: Path) -> None:
    main(["har", str(har_folder(tmp_path / "UCI HAR Dataset")), str(tmp_path / "har.npz")])
    with np.load(tmp_path / "har.npz") as arrays:
        assert (arrays["x"].shape, arrays["x_test"].shape) == ((4, 5, 9), (2, 5, 9))
        assert arrays["x"][3, 2, 8] == pytest.approx(8.32)
        assert arrays["y"].tolist() == ["walking", "laying"] * 2
        assert (set(arrays["group"]), set(arrays["group_test"])) == ({"subject 1"}, {"subject 7"})
        assert arrays["channels"][3] == "body_gyro_x"
    with pytest.raises(SystemExit, match=r"has no activity_labels.txt"):
        from_har(tmp_path)


def test_ucr(tmp_path: Path) -> None:
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Small_{part}.tsv").write_text("1\t0.5\t-1\t2\n-1\t0\t1\t2\n")
        (tmp_path / f"Ragged_{part}.tsv").write_text("1\t0.5\tNaN\n-1\t0\t1\n")
    arrays = from_ucr(tmp_path, "Small")
    assert arrays["x"][0].tolist() == [[0.5], [-1], [2]]
    assert arrays["y_test"].tolist() == ["1", "-1"]
    with pytest.raises(SystemExit, match="unequal length"):
        from_ucr(tmp_path, "Ragged")
    with pytest.raises(SystemExit, match="no set Other"):
        from_ucr(tmp_path, "Other")


def test_ts(tmp_path: Path) -> None:
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Small_{part}.ts").write_text("#About\n@dimensions 2\n@data\n1,2,3:4,5,6:Run\n0,0,0:1,1,1:Rest\n")
    arrays = from_ts(tmp_path, "Small")
    assert arrays["x"][0].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert arrays["y"].tolist() == ["Run", "Rest"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(signal_sets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps seglearn==1.2.5"):
        main(["watch", str(tmp_path / "watch.npz")])

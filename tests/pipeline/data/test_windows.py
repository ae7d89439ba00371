"""Windows of a signal: the three formats, and what is refused."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import signals
from command_line import invoke

from kdedge.dataset import split_train_val
from kdedge.errors import InputError
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.checks import RUN_ALL_FLAGS
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import check_outside, find_dataset
from kdedge.pipeline.data.summary import summarise
from kdedge.pipeline.data.summary_text import print_summary
from kdedge.pipeline.data.windows.summary import short_summary_of_windows
from kdedge.pipeline.stages.teacher import check


def opened(path, **options):
    return find_dataset(DataConfig(source=f"windows:{path}", **options))


def parts_of(dataset):
    train, val = split_train_val(dataset.train(), 0.1)
    return {"train": train, "val": val, "test": dataset.test()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return signals.make_folder(tmp_path_factory.mktemp("recordings") / "data")


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return signals.make_npz(tmp_path_factory.mktemp("arrays") / "data.npz")


def test_recordings_are_cut_and_never_shared_between_parts(folder):
    dataset = opened(folder, window=64, val_fraction=0.2)
    parts = parts_of(dataset)
    groups = {part: {*split.groups.tolist()} for part, split in parts.items()}
    assert {part: len(found) for part, found in groups.items()} == {"train": 8, "val": 2, "test": 2}
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
    assert len(parts["test"]) == 2 * 5, "test windows of 64 do not overlap in 320 rows"
    assert len(parts["train"]) == 8 * 9, "training windows overlap by a half"
    assert dataset.spec.channels == ("ax", "ay")
    assert dataset.spec.rate_hz == 50
    assert dataset.spec.window_s == 1.28
    assert dataset.class_names == ("fast", "slow")
    assert short_summary_of_windows(dataset, DataConfig()).startswith("windows:data: 2 classes, windows of 64 samples")


def test_the_statistics_are_of_the_training_windows(npz):
    dataset = opened(npz, layout="NLC", val_fraction=0.2)
    train = parts_of(dataset)["train"].images
    np.testing.assert_allclose(dataset.spec.mean, train.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(1 / np.array(dataset.spec.scale), train.std((0, 1)), rtol=1e-4)
    normalised = dataset.spec.normalised(train)
    assert normalised.shape == (len(train), 2, 1, 64)
    assert abs(normalised.mean()) < 1e-3


def test_a_channel_that_is_constant_while_training_keeps_its_scale(npz, tmp_path):
    arrays = dict(np.load(npz))
    constant = np.full_like(arrays["x"][..., :1], 1013.7)
    np.savez(tmp_path / "more.npz", x=np.concatenate([arrays["x"], constant], 2), y=arrays["y"], group=arrays["group"])
    spec = opened(tmp_path / "more.npz", layout="NLC").spec
    assert spec.scale[2] == 1
    assert abs(spec.normalised(np.float32([[[0, 0, 1013.9]] * 64]))).max() < 1e4, (
        "a little later variation stays little"
    )


def test_the_layout_is_never_guessed(npz, tmp_path):
    with pytest.raises(InputError, match="order of the axes of x") as caught:
        opened(npz)
    assert "--layout NLC or --layout NCL" in caught.value.hint
    arrays = dict(np.load(npz))
    np.savez(tmp_path / "bad.npz", x=arrays["x"], y=np.zeros(len(arrays["y"])))
    with pytest.raises(InputError, match=r"y of .* is float64") as caught:
        opened(tmp_path / "bad.npz", layout="NLC")
    assert "--layout NLC for [windows, samples, channels]" in caught.value.hint
    np.savez(tmp_path / "other.npz", **{**arrays, "x": arrays["x"].transpose(0, 2, 1)})
    assert opened(tmp_path / "other.npz", layout="NCL").train_sha256() == opened(npz, layout="NLC").train_sha256()


def test_no_array_or_group_is_ignored_silently(npz, tmp_path, capsys):
    arrays = dict(np.load(npz))
    with pytest.raises(InputError, match=r"--groups group names a column or folder, which .*data\.npz has not"):
        opened(npz, layout="NLC", groups="group")
    np.savez(tmp_path / "labels.npz", **arrays, y_test=arrays["y"])
    with pytest.raises(InputError, match=r"has the arrays x, y, group, channels, y_test"):
        opened(tmp_path / "labels.npz", layout="NLC")
    np.savez(tmp_path / "other.npz", subjects=arrays.pop("group"), **arrays)
    opened(tmp_path / "other.npz", layout="NLC")
    assert "other.npz: ignoring the arrays subjects" in " ".join(capsys.readouterr().err.split())


def test_the_row_numbers_of_pandas_are_no_channel(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.csv").write_text(",time,ax\n0,0.0,1.5\n1,0.1,1.5\n")
    with pytest.raises(InputError, match=r"column 1 of .*0\.csv has no name") as caught:
        opened(tmp_path)
    assert "index=False" in caught.value.hint
    (tmp_path / "a" / "0.csv").write_text("Unnamed: 0,time,ax\n0,0.0,1.5\n1,0.1,1.5\n")
    with pytest.raises(InputError, match=r"column 1 of .*0\.csv has no name of its own \(Unnamed: 0\)"):
        opened(tmp_path)


def test_a_copied_recording_in_the_test_part_is_named(tmp_path, capsys):
    for part in ("train", "test"):
        signals.make_folder(tmp_path / part, count=4, length=128)
    dataset = opened(tmp_path, window=64, val_fraction=0.2)
    dataset.warn_duplicates()
    message = "16 of 16 test windows are copies of training or validation windows: the measured accuracy is too high"
    assert message in " ".join(capsys.readouterr().err.split())
    opened(signals.make_folder(tmp_path / "other"), window=64).warn_duplicates()
    assert "copies" not in capsys.readouterr().err


def test_a_run_inside_the_recordings_is_refused(folder, npz):
    with pytest.raises(InputError, match="is inside the data folder"):
        check_outside(opened(folder, window=64), folder / "out")
    check_outside(opened(folder, window=64), folder.parent / "out")
    check_outside(opened(npz, layout="NLC"), npz.parent / "out")


def test_a_class_without_test_windows_is_named(tmp_path, capsys):
    for part in ("train", "test"):
        signals.make_folder(tmp_path / part, count=4, length=64)
    shutil.rmtree(tmp_path / "test" / "slow")
    assert opened(tmp_path).test_counts() == [4, 0]
    text = ", test has no windows of slow: the accuracy does not include these classes"
    assert text in " ".join(capsys.readouterr().err.split())


def test_given_parts_and_groups_by_folder(tmp_path):
    for part in ("train", "test"):
        signals.make_folder(tmp_path / part, count=4, length=64)
    dataset = opened(tmp_path, val_fraction=0.2)
    assert len(dataset.test()) == 8
    with pytest.raises(InputError, match="is not in a folder of a group"):
        opened(tmp_path, groups="folder")
    for file in list(tmp_path.rglob("*.csv")):
        group = file.parent / f"{file.parents[1].name}-{int(file.stem) // 2}"
        group.mkdir(exist_ok=True)
        file.rename(group / file.name)
    groups = {part: {*split.groups.tolist()} for part, split in parts_of(opened(tmp_path, groups="folder")).items()}
    assert groups == {"train": groups["train"], "val": groups["val"], "test": {"test-0", "test-1"}}
    assert groups["train"] | groups["val"] == {"train-0", "train-1"}
    shared = next(tmp_path.glob("test/*/test-0"))
    shared.rename(shared.with_name("train-0"))
    with pytest.raises(InputError, match=r"the group train-0 of .* is in test and in train"):
        opened(tmp_path, groups="folder")


def test_a_part_is_never_a_class_and_a_session_never_a_group(tmp_path):
    signals.make_folder(tmp_path / "test", count=4, length=64)
    with pytest.raises(InputError, match="has test: one training folder is needed"):
        opened(tmp_path)
    signals.make_folder(tmp_path, count=4, length=64)
    with pytest.raises(InputError, match="recordings in fast next to test: it is not clear whether fast is"):
        opened(tmp_path)
    for file in list((tmp_path / "test").rglob("*.csv")):
        session = file.parent / "subject 1" / "session 1"
        session.mkdir(parents=True, exist_ok=True)
        file.rename(session / file.name)
    with pytest.raises(InputError, match="is not in a folder of a group"):
        opened(tmp_path / "test", groups="folder")


def test_a_class_without_recordings_is_named_and_files_of_other_systems_are_no_recordings(tmp_path):
    root = signals.make_folder(tmp_path / "data", count=6, length=64)
    for junk in (root / "__MACOSX" / "slow" / "._0.csv", root / "slow" / "._0.csv"):
        junk.parent.mkdir(parents=True, exist_ok=True)
        junk.write_bytes(b"\0\5\26\7\xff")
    assert opened(root).class_names == ("fast", "slow")
    (root / "still").mkdir()
    (root / "still" / "0.txt").write_text("1,2")
    with pytest.raises(InputError, match=r"the class folder .*still has no recording \(\.csv\)") as caught:
        opened(root)
    assert "add recordings or remove that folder" in caught.value.hint


def test_recordings_outside_class_folders_are_never_dropped_silently(tmp_path, capsys):
    signals.make_folder(tmp_path / "train", length=64)
    (tmp_path / "train" / "loose.csv").write_text("1,2\n")
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match=r"val has no class folders$"):
        opened(tmp_path)
    (tmp_path / "val").rmdir()
    test = signals.make_folder(tmp_path / "more", length=64) / "fast"
    test.rename(tmp_path / "test")
    shutil.rmtree(tmp_path / "more")
    with pytest.raises(InputError, match=r"test has no class folders, but recordings$") as caught:
        opened(tmp_path)
    assert "PATH/test/CLASS/RECORDING.csv" in caught.value.hint
    shutil.rmtree(tmp_path / "test")
    assert sum(map(len, opened(tmp_path).parts.values())) == 12
    assert "train: files outside any class folder are not used: loose.csv" in " ".join(capsys.readouterr().err.split())


def test_a_link_to_a_folder_of_recordings_is_left_out_aloud(tmp_path, capsys):
    root = signals.make_folder(tmp_path / "data", count=6, length=64)
    (root / "fast" / "subject").symlink_to(signals.make_folder(tmp_path / "more", count=1, length=64) / "fast")
    assert sum(map(len, opened(root).parts.values())) == 12
    assert "subject links to a folder, whose recordings are left out" in " ".join(capsys.readouterr().err.split())


def test_recordings_may_end_in_capitals(tmp_path):
    root = signals.make_folder(tmp_path / "data", count=6, length=64)
    for file in list(root.rglob("*.csv")):
        file.rename(file.with_suffix(".CSV"))
    assert opened(root).class_names == ("fast", "slow")


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (5, "0.06,nan,2", "row 5 of .*0.csv: ax is 'nan', expected a finite number"),
        (5, "0.06,1e39,2", "row 5 of .*0.csv: ax is '1e39', expected a finite number"),
        (5, "0.06,,2", "row 5 of .*0.csv: ax is 'empty', expected a finite number"),
        (5, "0.06,1", "row 5 of .*0.csv has 2 cells, expected 3"),
        (5, "0.26,1,2", "row 5 of .*0.csv: 0.22 s after the row before, where the usual step is 0.02 s"),
        (1, "time,ay,ax", "has the channels ax, ay; .*0.csv has ay, ax"),
    ],
)
def test_bad_rows_name_file_and_row(tmp_path, line, text, message):
    root = signals.make_folder(tmp_path / "data", count=3, length=64)
    file = root / "fast" / "0.csv"
    lines = file.read_text().splitlines()
    lines[line - 1] = text
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        opened(root)


def test_unequal_lengths_and_rates_are_refused(tmp_path):
    root = signals.make_folder(tmp_path / "data", count=3, length=64)
    signals.write_csv(root / "fast" / "0.csv", signals.waves(1, 1, 80, 0)[0])
    with pytest.raises(InputError, match=r"has 64 rows, fast/0.csv has 80") as caught:
        opened(root)
    assert "--window" in caught.value.hint
    with pytest.raises(InputError, match="has 64 rows, fewer than --window 70"):
        opened(root, window=70)
    file = root / "fast" / "0.csv"
    rows = [line.split(",") for line in file.read_text().splitlines()]
    file.write_text("\n".join(",".join([str(i / 20) if i else "time", *row[1:]]) for i, row in enumerate(rows)))
    with pytest.raises(InputError, match=re.escape("has 50 rows per second") + r"; .*0.csv has 20"):
        opened(root, window=64)


def test_another_rate_of_the_same_samples_is_another_training(tmp_path):
    root = signals.make_folder(tmp_path / "data", count=4, length=64)
    before = opened(root)
    for file in root.rglob("*.csv"):
        file.write_text(file.read_text().replace("time,", "time_ms,"))
    after = opened(root)
    assert (before.spec.rate_hz, after.spec.rate_hz) == (50, 50_000)
    assert before.train_sha256() != after.train_sha256()
    assert before.test_sha256() == after.test_sha256()


def test_options_of_signals_need_a_signal(npz):
    with pytest.raises(InputError, match="--window is for --data windows:PATH"):
        build_config({"data": {"source": "sample", "window": 64}})
    config = build_config({"data": {"source": f"windows:{npz}", "layout": "NLC"}})
    assert (config.preset, config.distill.student, config.data.val_fraction) == ("windows", "signal", 0.2)


@pytest.mark.parametrize(
    ("section", "key", "value", "flag"),
    [
        ("data", "resize", "pad", "--resize"),
        ("data", "image_size", 64, "--image-size"),
        ("distill", "flip", True, "--flip"),
        ("distill", "augment", "strong", "--augment strong"),
        ("distill", "mix", 0.5, "--mix"),
        ("distill", "mean_of_flips", True, "--mean-of-flips"),
    ],
)
def test_options_of_images_are_refused_before_anything_is_read(section, key, value, flag):
    layers = {"data": {"source": "windows:absent"}}
    layers.setdefault(section, {})[key] = value
    with pytest.raises(InputError, match=f"{flag} is for images; --data windows:absent has windows of a signal"):
        build_config(layers)


@pytest.mark.parametrize(("source", "student"), [("windows:absent", "signal,lite"), ("sample", "lite,signal-s")])
def test_students_of_other_inputs_are_refused_before_anything_is_read(source, student):
    wrong = student.split(",")[1]
    with pytest.raises(InputError, match=f"--student {wrong} is not for (images|windows of a signal): use "):
        build_config({"data": {"source": source}, "distill": {"student": student}}, flags=RUN_ALL_FLAGS)


@pytest.mark.parametrize(("key", "value"), [("flip", True), ("augment", "standard"), ("cutout", 8)])
def test_options_of_images_of_the_teacher_are_refused_with_signals(tmp_path, key, value):
    config = build_config({"data": {"source": "windows:absent"}, "teacher": {key: value}})
    with pytest.raises(InputError, match=f"--teacher-{key}.* is for images"):
        check(config, tmp_path)


def test_the_page_shows_defects_copies_and_curves_of_every_class(npz, tmp_path):
    arrays = dict(np.load(npz))
    x, y = np.concatenate([arrays["x"], np.full_like(arrays["x"][..., :1], 5)], axis=2), arrays["y"]
    x[..., 0] = np.minimum(x[..., 0], 10.5)
    file = tmp_path / "bad.npz"
    np.savez(file, x=x[:100], y=y[:100], group=arrays["group"][:100], x_test=x[99:], y_test=y[99:])
    result = invoke("data", "--data", f"windows:{file}", "--layout", "NLC", "--out", tmp_path / "page", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    ax, ay, constant = facts["channels"]
    assert ax["largest"] == 10.5
    assert ax["at_limits_pct"] > 20
    assert ay["at_limits_pct"] < 1
    assert (ay["hardly_varies"], constant["hardly_varies"]) == (False, True)
    assert facts["duplicates"]["test_copies"] == 1
    assert facts["gate"]["least_test_images"] == 765
    page = Path(facts["page"]).read_text()
    for text in (
        "are at these limits, as if clipped",
        "5 to 5: hardly varies",
        "test windows that are also training or validation windows: 1",
        "21 test windows; a limit of 0.5 pp needs at least 765",
    ):
        assert text in page
    sheets = [base64.b64decode(part.split('"')[0]).decode() for part in page.split("svg+xml;base64,")[1:]]
    assert [sheet.count("<polyline") for sheet in sheets] == [4 * 3, 4 * 3]
    assert "<th>images</th>" not in page


def test_the_table_counts_recordings_and_groups(folder, capsys):
    facts, _ = summarise(DataConfig(source=f"windows:{folder}", window=64, val_fraction=0.2))
    print_summary(facts)
    shown = capsys.readouterr().out
    assert "class  training  validation  test  recordings  groups" in shown
    assert re.search(r"slow +\d+ +5 +5 +6 +6\n", shown)
    assert re.search(r"recordings +12 of 320 to 320 rows, median 320", shown)
    assert re.search(r"windows +64 samples at 50 Hz \(1.28 s\)", shown)

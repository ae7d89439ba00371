"""`kdedge predict`, and the predict.py that travels with the bundle."""

import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import broken_arrays, pictures
from PIL import Image
from typer.testing import CliRunner

from kdedge.benchmarks.session import run_model
from kdedge.errors import InputError
from kdedge.export.bundle import predict as predicting
from kdedge.export.bundle.predict import open_bundle, predict
from kdedge.export.bundle.verify import verify_bundle
from kdedge.pipeline.cli import app


def test_predict_takes_files_folders_and_arrays(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    files = pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "notes.txt").write_text("ignored")
    golden = bundle / "golden_inputs.npy"
    rows = list(predict(bundle, [files[0], tmp_path / "pictures", golden]))
    assert [row["file"] for row in rows[:7]] == [str(files[0]), *map(str, files)]
    assert [row["file"] for row in rows[7:]] == [f"{golden}[{i}]" for i in range(16)]
    logits = np.load(bundle / "golden_int8_logits.npy")
    assert [row["index"] for row in rows[7:]] == logits.argmax(1).tolist()
    assert rows[0] == {**rows[1]}
    assert all(row["label"] == ("ant", "bee", "cat", "dog")[row["index"]] for row in rows)


def test_predict_counts_the_files_of_a_folder_that_it_leaves_out(
    make_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "pictures")
    for name in ("a.HEIC", "b.heic", "raw", "notes.txt", ".hidden", "._00.png"):
        (tmp_path / "pictures" / name).touch()
    assert len(list(predict(make_bundle(), [tmp_path / "pictures"]))) == 6
    assert "pictures: not classified: 2 .heic, 1 without an extension\n" in capsys.readouterr().err


def test_predict_names_the_folders_in_a_folder_that_it_cannot_or_does_not_read(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "pictures"
    pictures(folder)
    (folder / "b.d").mkdir()
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    listdir = os.listdir

    def denied(path: Any) -> list[str]:
        if Path(path).name == "b.d":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", denied)
    failed: list[InputError] = []
    assert len(list(predict(make_bundle(), [folder], failed=failed.append))) == 6
    assert [str(error) for error in failed] == [f"cannot read the folder {folder / 'b.d'}: Permission denied"]
    assert "pictures: not classified: 1 link to a folder\n" in capsys.readouterr().err


def test_predict_reads_paths_from_standard_input(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    files = pictures(tmp_path / "pictures")
    odd = tmp_path / os.fsdecode(b" not text \xff.png")
    shutil.copy(files[0], odd)
    lines = b"\n".join([os.fsencode(files[1]), b"", os.fsencode(odd), os.fsencode(tmp_path / "pictures"), b""])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    rows = list(predict(bundle, [files[2], Path("-")]))
    assert [row["file"] for row in rows] == [str(path) for path in (files[2], files[1], odd, *files)]
    shown = CliRunner().invoke(app, ["predict", str(bundle), "-"], input=lines)
    assert (shown.exit_code, len(shown.stdout.splitlines())) == (0, 2 + len(files))
    assert "not text \N{REPLACEMENT CHARACTER}.png" in shown.stdout


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_predict_answers_a_path_before_the_next_one_comes(
    make_bundle: Callable[..., Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    bundle = make_bundle()
    first, second, third, *_ = pictures(tmp_path / "pictures")
    command = [sys.executable, "-m", "kdedge", "predict", str(bundle), str(first), "-", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        impatient = threading.Timer(60, process.kill)
        impatient.start()
        try:
            assert first.name.encode() in process.stdout.readline()
            process.stdin.write(os.fsencode(second) + b"\n" + os.fsencode(third)[:5])
            process.stdin.flush()
            assert second.name.encode() in process.stdout.readline()
            process.stdin.write(os.fsencode(third)[5:])  # the last line need not end
            process.stdin.close()
            assert third.name.encode() in process.stdout.readline()
            assert (process.stdout.read(), process.wait()) == (b"", 0)
        finally:
            impatient.cancel()
            process.kill()


def test_predict_runs_what_standard_input_holds_in_batches(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    (good, *_) = pictures(tmp_path / "pictures")
    sizes: list[int] = []

    def counting(model: Any, images: Any) -> Any:
        sizes.append(len(images))
        return run_model(model, images)

    monkeypatch.setattr("kdedge.export.bundle.predict.run_model", counting)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((os.fsencode(good) + b"\n") * 100)))
    assert len(list(predict(bundle, [Path("-")]))) == 100
    assert sizes == [32, 32, 32, 4]


@pytest.mark.parametrize("text", [b"", b"\n\n"])
def test_predict_with_nothing_on_standard_input(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    bundle = make_bundle()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    with pytest.raises(InputError, match="standard input has no paths"):
        list(predict(bundle, [Path("-")]))


def test_predict_keeps_the_order_of_many_images(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """More than are decoded ahead, large and small in turn, so that threads overtake each other."""
    bundle = make_bundle()
    files = []
    for number in range(150):
        side = 600 if number % 7 == 0 else 16
        pixels = np.full((side, side, 3), number, np.uint8)
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
    rows = list(predict(bundle, files))
    assert [row["file"] for row in rows] == [str(path) for path in files]
    alone = [next(predict(bundle, [path]))["label"] for path in files[::50]]
    assert alone == [row["label"] for row in rows[::50]]


def test_predict_decodes_a_folder_at_most_three_batches_ahead_of_its_answers(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, (image, *_), loaded = make_bundle(), pictures(tmp_path / "pictures"), []
    many = tmp_path / "many"
    many.mkdir()
    for number in range(300):
        os.link(image, many / f"{number}.png")
    load = predicting._load
    monkeypatch.setattr(predicting, "_load", lambda *arguments: loaded.append(1) or load(*arguments))
    ahead = [len(loaded) - answered for answered, _ in enumerate(predict(bundle, [many]))]
    assert len(ahead) == 300
    assert max(ahead) <= 3 * predicting._BATCH


def test_predict_stops_at_a_bad_file_among_many(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    (good, *_) = pictures(tmp_path / "pictures")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    rows = predict(bundle, [*[good] * 100, bad, *[good] * 100])
    assert [next(rows)["file"] for _ in range(100)] == [str(good)] * 100
    with pytest.raises(InputError, match=r"cannot read the image .*bad\.png"):
        next(rows)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_predict_answers_the_rest_after_bad_files(
    make_bundle: Callable[..., Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    bundle = make_bundle()
    good = pictures(tmp_path / "pictures")[:2]
    os.mkfifo(tmp_path / "pipe")
    bad = [tmp_path / "pipe", tmp_path / "nowhere.png", tmp_path / ("x" * 300), tmp_path / "\x1b[2J\n.png"]
    bad[-1].write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    files = [bad[0], good[0], *bad[1:], tmp_path / "empty", good[1]]
    done = CliRunner().invoke(app, ["predict", str(bundle), *map(str, files), *options])
    assert done.exit_code == 1
    answers = done.stdout.splitlines()
    assert len(answers) == 2
    assert all(path.name in answer for path, answer in zip(good, answers, strict=True))
    errors = done.stderr.splitlines()
    assert [error.startswith("error: ") for error in errors] == [True] * 5
    for error, message in zip(
        errors,
        ("is not a regular file", "does not exist", "File name too long", r"\u001b[2J\n.png", "has no images"),
        strict=True,
    ):
        assert message in error


def test_labels_and_names_cannot_change_the_terminal(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    (bundle / "labels.txt").write_text("\x1b[31mant\nb\u202eee\n\u732b\u200d\ndog\n", encoding="utf-8")
    odd = tmp_path / "a\n\x9b.png"
    pictures(tmp_path / "pictures")[0].rename(odd)
    done = CliRunner().invoke(app, ["predict", str(bundle), str(odd), "--top", "4"])
    assert (done.exit_code, done.stdout.count("\n")) == (0, 4)
    assert done.stdout.count(r"a\n\u009b.png") == 4
    for label in (r"\u001b[31mant ", r"b\u202eee ", "\u732b\u200d ", "dog "):
        assert label in done.stdout


def test_predict_top_k_and_fp32(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    rows = list(predict(bundle, [bundle / "golden_inputs.npy"], top_k=4, fp32=True))
    logits = np.load(bundle / "golden_fp32_logits.npy")
    assert [row["index"] for row in rows] == logits.argmax(1).tolist()
    for row in rows:
        shares = [item["probability"] for item in row["top"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["top"][0]["label"] == row["label"]
    with pytest.raises(InputError, match="--top 9 is out of range"):
        next(predict(bundle, [bundle / "golden_inputs.npy"], top_k=9))


def test_predict_refuses_what_it_cannot_read(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    np.save(tmp_path / "small.npy", np.zeros((8, 8, 3), np.uint8))
    np.save(tmp_path / "float.npy", np.zeros((16, 16, 3), np.float32))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("bad.png", "cannot read the image"),
        ("small.npy", r"has uint8 \[8, 8, 3\]; expected uint8 \[16, 16, 3\]"),
        ("float.npy", "has float32"),
        ("pickle.npy", "not a readable .npy file"),
        ("empty", "has no images"),
        ("nowhere.png", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            list(predict(bundle, [tmp_path / name]))


def test_predict_answers_what_came_before_a_bad_file(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    good = pictures(tmp_path / "pictures")[:2]
    answers = predict(bundle, [*good, tmp_path / "nowhere.png", good[0]])
    assert [next(answers)["file"], next(answers)["file"]] == [str(path) for path in good]
    with pytest.raises(InputError, match=r"nowhere\.png does not exist"):
        next(answers)


def test_predict_refuses_arrays_that_hold_no_images(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    for path in broken_arrays(tmp_path):
        with pytest.raises(InputError, match=f"{path.name} (is not a readable .npy file|has no images)"):
            list(predict(bundle, [path]))


def test_predict_needs_a_bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a bundle: cannot read"):
        next(predict(tmp_path, []))
    bundle = make_bundle()
    (bundle / "preprocessing.json").write_text('{"size": 32}')
    with pytest.raises(
        InputError, match=r"takes images of 16x16 pixels and has 4 classes; preprocessing\.json has images of 32x32"
    ):
        next(predict(bundle, []))
    (bundle / "preprocessing.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        next(predict(bundle, []))


def test_of_a_run_directory_the_error_names_its_bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    (tmp_path / "empty").mkdir()
    for folder, hint in (
        (tmp_path / "empty", "give the folder that `kdedge bundle` wrote"),
        (bundle.parent, f"give its bundle: {bundle}"),
    ):
        for use in (lambda folder: next(predict(folder, [])), verify_bundle):
            with pytest.raises(InputError, match="is not a bundle") as caught:
                use(folder)
            assert caught.value.hint == hint


def test_a_bundle_without_its_model_is_to_be_verified(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    (bundle / "student.int8.onnx").unlink()
    for use in (lambda: next(predict(bundle, [])), lambda: open_bundle(bundle)):
        with pytest.raises(InputError, match="no model at") as caught:
            use()
        assert caught.value.hint == f"run `kdedge verify {bundle}`"


# predict.py, alone ---------------------------------------------------------------------------------------------------

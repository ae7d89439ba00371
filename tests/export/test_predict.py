"""`kdedge predict`, and the predict.py that travels with the bundle."""

import ast
import io
import json
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
from broken_models import KINDS, write_broken
from PIL import Image, UnidentifiedImageError
from typer.testing import CliRunner

from kdedge.benchmarks.session import run_model
from kdedge.errors import InputError
from kdedge.export.bundle import standalone
from kdedge.export.bundle.predict import predict
from kdedge.export.bundle.verify import verify_bundle
from kdedge.images import read_image
from kdedge.pipeline.cli import app


def pictures(folder: Path) -> list[Path]:
    """Write images of several modes and sizes."""
    folder.mkdir()
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgba.save(folder / "a.png")
    rgba.convert("L").save(folder / "b.png")
    rgba.convert("RGB").save(folder / "c.jpg")
    rgba.convert("P").save(folder / "d.gif")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "e.png")
    Image.fromarray(pixels[:16, :16, :3]).save(folder / "f.png")
    return sorted(folder.iterdir())


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
        ("small.npy", r"has uint8 \[1, 8, 8, 3\]; expected uint8 \[16, 16, 3\]"),
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


def broken_arrays(folder: Path) -> list[Path]:
    """Write files that end in .npy and hold no images."""
    for name, shape in (("none", (0, 16, 16, 3)), ("huge", (10**12, 16, 16, 3)), ("absurd", (2**62, 16, 16, 3))):
        with (folder / f"{name}.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
    np.savez(folder / "archive.npz", np.zeros((16, 16, 3), np.uint8))
    (folder / "archive.npz").rename(folder / "archive.npy")
    (folder / "cut.npy").write_bytes((folder / "archive.npy").read_bytes()[:50])
    return sorted(folder.glob("*.npy"))


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
    with pytest.raises(InputError, match=r"has images of 16 pixels and 4 classes; preprocessing\.json has 32"):
        next(predict(bundle, []))
    (bundle / "preprocessing.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        next(predict(bundle, []))


# predict.py, alone ---------------------------------------------------------------------------------------------------

# Runs predict.py as a device would that has numpy and onnxruntime only (and Pillow where it is not blocked).
ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocker())
import runpy
sys.argv = ["predict.py", *sys.argv[1:]]
runpy.run_path(SCRIPT, run_name="__main__")
"""


def run_alone(bundle: Path, *arguments: object, pillow: bool = True) -> "subprocess.CompletedProcess[str]":
    blocked = {"torch", "onnx", "typer", "rich", "filelock", "pipeline", "export", "benchmarks"}
    blocked |= set() if pillow else {"PIL"}
    code = f"BLOCKED = {blocked!r}\nSCRIPT = {str(bundle / 'predict.py')!r}\n{ALONE}"
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=bundle.parent, capture_output=True, text=True, check=False, timeout=60)


def test_predict_py_agrees_with_kdedge_predict(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    files = [*pictures(tmp_path / "pictures"), bundle / "golden_inputs.npy"]
    done = run_alone(bundle, *files)
    assert done.stderr == ""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == list(predict(bundle, files))
    assert rows[0].keys() == {"file", "label", "index", "probability"}
    assert verify_bundle(bundle)  # running it leaves nothing behind


def test_predict_py_without_pillow(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    np.save(tmp_path / "one.npy", np.load(bundle / "golden_inputs.npy")[0])
    done = run_alone(bundle, "--fp32", tmp_path / "one.npy", pillow=False)
    assert json.loads(done.stdout)["index"] == int(np.load(bundle / "golden_fp32_logits.npy")[0].argmax())
    done = run_alone(bundle, pictures(tmp_path / "pictures")[0], pillow=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs Pillow" in done.stderr


def test_predict_py_errors_are_one_line(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    np.save(tmp_path / "small.npy", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ["small.npy", "bad.png", "nowhere.npy", *(path.name for path in broken_arrays(tmp_path))]:
        done = run_alone(bundle, tmp_path / name)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"predict.py: {tmp_path / name}: ")
        assert done.stderr.count("\n") == 1


def test_predict_py_takes_and_refuses_the_files_that_kdedge_predict_does(tmp_path: Path) -> None:
    made = pictures(tmp_path / "pictures")
    wide = np.random.default_rng(4).integers(0, 1 << 16, (20, 20)).astype(np.int32)
    pixels = Image.fromarray((wide >> 8).astype(np.uint8))
    for name, image, format_ in (
        ("taken-wide.tif", Image.fromarray(wide), "TIFF"),  # 32 bits that hold 16, as older Pillow opens 16-bit PNGs
        ("taken-short.tif", Image.fromarray(wide.astype(np.uint16)), "TIFF"),
        ("taken-dark.tif", Image.fromarray(wide >> 8), "TIFF"),
        ("taken-dark.png", Image.fromarray((wide >> 8).astype(np.uint16)), "PNG"),
        ("int.tif", Image.fromarray(wide * 2), "TIFF"),
        ("negative.tif", Image.fromarray(wide - 1000), "TIFF"),
        ("float.tif", Image.fromarray(wide.astype(np.float32)), "TIFF"),
        ("renamed-pcx.png", pixels, "PCX"),
        ("renamed-eps.jpg", pixels, "EPS"),
        ("renamed-ico.gif", pixels, "ICO"),
    ):
        made.append(tmp_path / name)
        image.save(made[-1], format_)
    made.append(tmp_path / "cut.jpg")
    made[-1].write_bytes((tmp_path / "pictures" / "c.jpg").read_bytes()[:300])
    refused = []
    for path in made:
        try:
            expected = read_image(path, 16)
        except InputError:
            refused.append(path.name)
            # Not OSError: that may only mean that Ghostscript is missing.
            with pytest.raises((ValueError, UnidentifiedImageError) if path.name != "cut.jpg" else OSError):
                standalone.load(path, 16)
        else:
            assert np.array_equal(standalone.load(path, 16)[0], expected)
    assert refused == [path.name for path in made if path.parent == tmp_path and not path.name.startswith("taken")]


def test_predict_py_says_which_pixels_it_refuses(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "float.tif")
    done = run_alone(bundle, tmp_path / "float.tif")
    message = "float or 32-bit pixels have no known range, expected 8 or 16 bits"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"predict.py: {tmp_path / 'float.tif'}: {message}\n"


def test_predict_py_is_short_and_runs_on_python_3_8() -> None:
    text = Path(standalone.__file__).read_text()
    assert len(text.splitlines()) < 165
    ast.parse(text, feature_version=(3, 8))
    assert "from __future__ import annotations" in text  # `str | Path` stays a text there


def test_predict_py_answers_the_rest_after_bad_files(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    good = pictures(tmp_path / "pictures")[:2]
    os.mkfifo(tmp_path / "pipe")
    odd = tmp_path / "\x1b[31m\n.png"
    odd.write_bytes(b"no image")
    done = run_alone(bundle, tmp_path / "pipe", good[0], odd, tmp_path / ("x" * 300), tmp_path, good[1])
    assert done.returncode == 1
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [str(path) for path in good]
    fifo, escaped, long, folder = done.stderr.splitlines()
    assert fifo == f"predict.py: {tmp_path / 'pipe'}: there is no regular file of this name"
    assert escaped.startswith(f"predict.py: {tmp_path}/\\x1b[31m\\n.png: cannot identify image file")
    assert "File name too long" in long
    assert folder == f"predict.py: {tmp_path}: there is no regular file of this name"


@pytest.mark.parametrize("kind", KINDS)
def test_predict_py_with_a_model_that_fails_when_it_runs(
    make_bundle: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    bundle = make_bundle()
    write_broken(bundle / "student.int8.onnx", kind)
    np.save(tmp_path / "two.npy", np.load(bundle / "golden_inputs.npy")[:2])
    done = run_alone(bundle, tmp_path / "two.npy")
    if kind == "one row":  # right for the single image that the script runs at a time
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    (bundle / "student.int8.onnx").write_bytes(b"no model")
    done = run_alone(bundle, tmp_path / "two.npy")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_predict_py_classifies_frames(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    frames = np.load(bundle / "golden_inputs.npy")
    classify = standalone.Classifier(bundle)
    expected = [
        {key: row[key] for key in ("label", "index", "probability")}
        for row in predict(bundle, [bundle / "golden_inputs.npy"])
    ]
    assert classify(frames[0]) == expected[0]
    assert classify(list(frames)) == classify(frames) == expected
    # A frame of a camera: another size, blue first, so that it is a view that is not contiguous.
    camera = np.random.default_rng(5).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(camera[..., ::-1]).save(tmp_path / "frame.png")
    (row,) = predict(bundle, [tmp_path / "frame.png"])
    assert classify(camera[..., ::-1]) == {key: row[key] for key in ("label", "index", "probability")}
    for wrong in (frames[0].astype(np.float32), frames[0][..., :2], frames[0][..., 0]):
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
            classify(wrong)


# Runs with an old Python or old packages; the reference is what the current ones answered.
OLD = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import numpy, onnxruntime, PIL
import predict
images = numpy.load(sys.argv[2] + "/golden_inputs.npy")
for kind, name in (("int8", "student.int8.onnx"), ("fp32", "student.onnx")):
    classify = predict.Classifier(model=name)
    logits = classify.session.run(None, {"pixels": images})[0]
    golden = numpy.load(sys.argv[2] + "/golden_%s_logits.npy" % kind)
    print(kind, (logits == golden).all() if kind == "int8" else abs(logits - golden).max() <= 1e-5 * abs(golden).max())
answers = [classify(predict.load(Path(name), classify.size))[0] for name in sys.argv[3:]]
print(json.dumps([answers, onnxruntime.__version__, PIL.__version__]))
"""


@pytest.mark.wheels
@pytest.mark.parametrize(("onnxruntime", "python"), [("1.14.1", "3.8"), ("1.15.0", "3.11"), ("1.17.3", "3.11")])
def test_a_bundle_runs_on_the_oldest_runtimes(
    make_bundle: Callable[..., Path], tmp_path: Path, onnxruntime: str, python: str
) -> None:
    found = sys.executable if python == "3.11" else shutil.which(f"python{python}")
    if not found or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"no python{python}")
    site, bundle = tmp_path / "site", make_bundle()
    packages = [f"onnxruntime=={onnxruntime}", "numpy==1.24.4", "Pillow==9.4.0"]
    options = ["--only-binary=:all:", "--python-version", python, "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, *packages], check=True, capture_output=True)
    photos = pictures(tmp_path / "pictures")
    command = [found, "-I", "-B", "-c", OLD, str(site), str(bundle), *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *equal, answer = done.stdout.splitlines()
    assert equal == ["int8 True", "fp32 True"]
    answers, *versions = json.loads(answer)
    assert versions == [onnxruntime, "9.4.0"]
    for got, row in zip(answers, predict(bundle, photos, fp32=True), strict=True):
        assert got["label"] == row["label"]
        assert got["probability"] == pytest.approx(row["probability"], abs=1e-5)

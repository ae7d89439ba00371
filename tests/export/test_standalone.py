"""The script in a bundle: it agrees with `kdedge predict` and needs numpy and onnxruntime only."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_models import KINDS, write_broken
from image_folders import broken_arrays, pictures
from PIL import Image, UnidentifiedImageError

from kdedge.errors import InputError
from kdedge.export.bundle import standalone
from kdedge.export.bundle.predict import predict
from kdedge.export.bundle.verify import verify_bundle
from kdedge.images import read_image
from kdedge.resizing import resize_image

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
    blocked = {"torch", "onnx", "typer", "rich", "filelock", "kdedge"}
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


@pytest.mark.parametrize("mode", ["crop", "pad", "crop-0.875-bicubic"])
def test_predict_py_and_kdedge_predict_resize_as_the_bundle_says(
    make_bundle: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    bundle, files = make_bundle(), pictures(tmp_path / "pictures")
    squeezed = list(predict(bundle, files))
    settings = json.loads((bundle / "preprocessing.json").read_text())
    (bundle / "preprocessing.json").write_text(json.dumps(settings | {"resize_mode": mode}))
    rows = list(predict(bundle, files))
    assert rows != squeezed
    assert [json.loads(line) for line in run_alone(bundle, *files).stdout.splitlines()] == rows
    frame = np.asarray(Image.open(files[0]).convert("RGB"))
    np.save(tmp_path / "frame.npy", resize_image(Image.fromarray(frame), 16, mode))
    (row,) = predict(bundle, [tmp_path / "frame.npy"])
    assert standalone.Classifier(bundle)(frame) == {key: row[key] for key in ("label", "index", "probability")}
    del settings["resize_mode"]  # a bundle of an earlier version
    (bundle / "preprocessing.json").write_text(json.dumps(settings))
    assert list(predict(bundle, files)) == squeezed
    assert [json.loads(line) for line in run_alone(bundle, *files).stdout.splitlines()] == squeezed
    (bundle / "preprocessing.json").write_text(json.dumps(settings | {"resize_mode": "stretch"}))
    with pytest.raises(InputError, match="resize_mode 'stretch' is unknown, expected squeeze, crop, pad"):
        list(predict(bundle, files))


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
    assert fifo == f"predict.py: {tmp_path / 'pipe'}: no regular file has this name"
    assert escaped.startswith(f"predict.py: {tmp_path}/\\x1b[31m\\n.png: cannot identify image file")
    assert "File name too long" in long
    assert folder == f"predict.py: {tmp_path}: a folder; give its files: FOLDER/*"


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
    assert done.stderr.endswith("; copy the bundle again, or install a newer onnxruntime\n")


@pytest.mark.parametrize("lines", [slice(1, None), slice(0, 0)])
def test_predict_py_refuses_labels_that_do_not_fit_the_model(
    make_bundle: Callable[..., Path], tmp_path: Path, lines: slice
) -> None:
    bundle = make_bundle()
    labels = (bundle / "labels.txt").read_text().splitlines(keepends=True)
    (bundle / "labels.txt").write_text("".join(labels[lines]))
    done = run_alone(bundle, bundle / "golden_inputs.npy")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"or not one for each of {len(labels[lines])} labels\n")


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

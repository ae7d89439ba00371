"""Grey images through the whole pipeline: a model of one channel, and its bundle, which also takes RGB."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from command_line import invoke
from PIL import Image
from tiny import OPTIONS, TINY

from kdedge import load
from kdedge.benchmarks.report.file import read_report
from kdedge.images import is_grey
from kdedge.inputs import image_input, to_grey
from kdedge.manifest import load_manifest
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset

SIZE = 16
ROOT = Path(__file__).resolve().parents[2]


def write(root: Path, mode: str = "RGB", counts=(("train", 30), ("test", 10))) -> Path:
    """Write images of three brightnesses that have no color."""
    rng = np.random.default_rng(0)
    for part, count in counts:
        for label, name in enumerate(("dark", "light", "medium")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 60, (SIZE, SIZE)) + 80 * (0, 2, 1)[label]
                image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
                image.save(root / part / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    data = write(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdedge.export.quantize.search._LATENCY_SECONDS", 0.01)
        result = invoke("run-all", "--data", data, *TINY, "--allow-undecided", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert "all images are grey: the model takes one channel" in " ".join(result.output.split())
    return folder / "run"


@pytest.fixture
def pictures(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgba.save(tmp_path / "a.png")
    rgba.convert("L").save(tmp_path / "b.png")
    rgba.convert("RGB").save(tmp_path / "c.jpg")
    np.save(tmp_path / "d.npy", pixels[:SIZE, :SIZE, :3])
    np.save(tmp_path / "e.npy", pixels[None, :SIZE, :SIZE, :1])
    np.save(tmp_path / "f.npy", pixels[:SIZE, :SIZE, 0])
    return sorted(tmp_path.iterdir())


def test_to_grey_is_pillows_luma():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    assert np.array_equal(to_grey(pixels)[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_browser_computes_the_same_luma():
    pixels = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    source = (ROOT / "examples" / "web" / "classify.js").read_text()
    function = source[source.index("function toGrey") :].split("\n}\n")[0] + "}"
    code = f"{function}; console.log(JSON.stringify([...toGrey(new Uint8Array({pixels.ravel().tolist()}))]))"
    found = json.loads(subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout)
    assert found == to_grey(pixels)[:, 0].tolist()


def test_the_model_has_one_channel(run):
    for model in ("export/student.onnx", "quantize/student.int8.onnx"):
        assert onnxruntime.InferenceSession(run / model).get_inputs()[0].shape[1:] == [SIZE, SIZE, 1]
    report = read_report(run / "benchmark" / "report.json")
    assert report["accuracy"]["color"] == "grey"
    proof = report["int8_proof"]
    assert (proof["integer_convs"], proof["float_convs"], proof["float_gemms"]) == (5, 0, 0)
    assert report["student"]["macs"] > 0
    card = (run / "bundle" / "MODEL_CARD.md").read_text()
    assert f"uint8 grey, `[N, {SIZE}, {SIZE}, 1]`" in card
    assert np.load(run / "bundle" / "golden_inputs.npy").shape[1:] == (SIZE, SIZE, 1)
    assert load_manifest(run / "distill")["facts"]["flip"] is not None


def test_a_second_run_does_nothing_and_single_stages_continue(run):
    data = run.parent / "data"
    result = invoke("run-all", "--data", data, *TINY, "--allow-undecided", "--out", run)
    assert "nothing to do" in result.output, result.output
    assert "up to date" in invoke("quantize", "--out", run).output


def test_predict_and_predict_py_and_onnxruntime_answer_alike(run, pictures):
    result = invoke("predict", run / "bundle", *pictures, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    script = [sys.executable, str(run / "bundle" / "predict.py"), *map(str, pictures)]
    alone = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line) for line in alone] == rows
    session = onnxruntime.InferenceSession(run / "bundle" / "student.int8.onnx")
    photo = Image.open(pictures[2]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    logits = session.run(None, {"pixels": np.asarray(photo.convert("L"))[None, ..., None]})[0][0]
    assert rows[2]["index"] == logits.argmax()
    assert rows[2]["probability"] == pytest.approx(np.exp(logits).max() / np.exp(logits).sum(), abs=1e-5)


def test_a_frame_has_three_channels_or_one(run):
    model = load(run / "bundle")
    frame = np.random.default_rng(1).integers(0, 256, (23, 31, 1), np.uint8)
    assert model.predict(frame) == model.predict(frame[..., 0]) == model.predict(frame.repeat(3, 2))
    color = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    assert model.predict(color) == model.predict(to_grey(color))
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 1\]"):
        model.predict(frame.repeat(2, 2))


def test_the_bundle_verifies_becomes_c_and_is_measured_with_the_images_in_color(run, tmp_path):
    assert invoke("verify", run / "bundle").exit_code == 0
    result = invoke("export-c", run / "bundle", "--out", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert f"STUDENT_PIXELS {SIZE * SIZE} /* bytes of an image: grey" in (tmp_path / "c" / "student.h").read_text()
    images = write(tmp_path / "color", counts=(("test", 4),))
    Image.new("RGB", (SIZE, SIZE), (9, 7, 1)).save(images / "test" / "dark" / "00.png")
    options = ("--data", images, "--seconds", "0.05", "--batches", "1", "--out", tmp_path / "report")
    result = invoke("benchmark", run / "bundle", *options)
    assert result.exit_code == 0, result.output
    result = invoke(
        "gate", *(run / "bundle" / name for name in ("student.onnx", "student.int8.onnx")), "--data", images
    )
    assert result.exit_code in (0, 3), result.output
    result = invoke("quantize", run / "bundle" / "student.onnx", "--data", images, "--out", tmp_path / "other")
    assert "takes one channel; expected three" in " ".join(result.output.split())


def test_other_training_images_are_refused_and_rgb_is_a_choice(run):
    data = run.parent / "data"
    result = invoke("quantize", "--data", data, "--color", "rgb", "--out", run)
    assert result.exit_code == 2
    assert "was trained on other data" in " ".join(result.output.split())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK"])
def test_an_image_is_grey_in_every_mode(tmp_path, mode):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    grey.convert(mode).save(path)
    assert is_grey(path)


def opened(root: Path, **options):
    return open_dataset(DataConfig(source=f"folder:{root}", image_size=SIZE, **options))


def test_one_image_in_color_makes_the_model_rgb(tmp_path, capsys):
    root = write(tmp_path / "data", "L", counts=(("train", 3), ("test", 2)))
    grey = opened(root)
    assert grey.spec == image_input(SIZE, grey=True)
    assert grey.train().images.shape == (9, SIZE, SIZE, 1)
    hashes = {opened(root, color=color).train_sha256() for color in ("auto", "grey", "rgb")}
    assert len(hashes) == 2
    Image.new("RGB", (SIZE, SIZE), (9, 9, 8)).save(root / "test" / "dark" / "00.png")
    assert opened(root).spec == image_input(SIZE)
    assert "test images have color: the model takes RGB" in " ".join(capsys.readouterr().err.split())
    assert opened(root, color="grey").test().images.shape[3] == 1
    Image.new("RGB", (SIZE, SIZE), (9, 9, 8)).save(root / "train" / "dark" / "00.png")
    assert opened(root).train().images.shape == (9, SIZE, SIZE, 3)


def test_arrays_are_grey_without_color(tmp_path):
    x = np.repeat(np.random.default_rng(0).integers(0, 256, (12, 20, 20, 1), np.uint8), 3, 3)
    for name, images in (("one", x[..., :1]), ("three", x), ("none", x[..., 0])):
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.arange(12) % 2)
        assert open_dataset(DataConfig(source=f"arrays:{tmp_path / name}.npz")).spec.grey
    x[0, 0, 0, 1] ^= 1
    np.savez(tmp_path / "three.npz", x=x, y=np.arange(12) % 2)
    assert not open_dataset(DataConfig(source=f"arrays:{tmp_path}/three.npz")).spec.grey


def test_data_shows_the_channels(tmp_path):
    result = invoke("data", "--data", write(tmp_path / "data"), "--image-size", OPTIONS["--image-size"], "--json")
    facts = json.loads(result.stdout)
    assert facts["defaults"]["color"] == "grey"
    assert len(facts["pixels"]["mean"]) == 1


def test_a_run_of_an_earlier_version_stays_rgb(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "kdedge.pipeline.commands.stages._run", lambda names, config, *_: seen.append(config.data.color)
    )
    config = {"data": {"source": f"folder:{tmp_path}"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    invoke("quantize", "--out", tmp_path)
    invoke("run-all", "--data", tmp_path, "--out", tmp_path)
    config["data"]["color"] = "auto"
    (tmp_path / "config.json").write_text(json.dumps(config))
    invoke("quantize", "--out", tmp_path)
    assert seen == ["rgb", "rgb", "auto"]


def test_named_data_sets_have_color(tmp_path):
    result = invoke("data", "--data", "sample", "--color", "grey")
    assert result.exit_code == 2
    assert "--color grey is for images of your own" in " ".join(result.output.split())

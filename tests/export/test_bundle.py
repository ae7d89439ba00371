"""The bundle stage, `kdedge verify`, `kdedge predict` and the predict.py that travels with the bundle."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.runtime import open_model
from export.bundle import check_gate, run
from export.predict import predict
from export.verify import verify_bundle
from pipeline.artifacts import StageSpec, file_sha256, load_manifest, run_stage
from pipeline.cli import app
from pipeline.config import build_config
from pipeline.errors import GateError, InputError, StageError

FILES = {
    "student.int8.onnx", "student.onnx", "labels.txt", "preprocessing.json", "golden_inputs.npy",
    "golden_int8_logits.npy", "golden_fp32_logits.npy", "report.json", "MODEL_CARD.md", "predict.py",
}  # fmt: skip

REPORT = {
    "schema": 1,
    "run": {"preset": "default", "data": "fake", "seed": 0, "commit": None, "wall_s": 1.0, "versions": {}},
    "teacher": {"arch": "resnet18", "params": 11, "weights": "none", "test_top1_pct": None},
    "student": {"arch": "tiny", "params": 9000, "macs": 1_500_000, "method": "selective", "epochs": 1},
    "accuracy": {"split": "test", "n": 1000, "torch_fp32_top1_pct": 90.0, "onnx_fp32_top1_pct": 90.0,
                 "onnx_int8_top1_pct": 89.9},
    "gate": {"limit_pp": 0.5, "loss_pp": 0.1, "loss_lower95_pp": -0.2, "loss_upper95_pp": 0.4, "fp32_only_right": 2,
             "int8_only_right": 1, "verdict": "passed", "passed": True, "reason": "fine", "images_to_decide": None},
    "size": {"fp32_bytes": 40000, "int8_bytes": 11000, "ratio": 3.64},
    "latency": [{"provider": "CPUExecutionProvider", "model": "int8", "batch": 1, "threads": 1, "p50_ms": 0.05,
                 "p99_ms": None, "trust": {"verdict": "steady", "reasons": []}}],
    "host": {"cpu": "a CPU", "cores": 2, "onnxruntime": "1.32.0"},
}  # fmt: skip

MANIFEST_OF_BENCHMARK = {
    "schema": 1,
    "stage": "benchmark",
    "config": {},
    "inputs": {"data/test": "ef" * 32},
    "facts": {},
}


def gate(verdict: str, **more: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(REPORT))
    changed["gate"] |= {"verdict": verdict, "passed": verdict == "passed", **more}
    return changed


@pytest.fixture
def make_bundle(exported: Path, quantized: Path, tmp_path: Path, dataset: Any) -> Callable[..., Path]:
    """Build a bundle as `kdedge bundle` does, from a report."""

    def make(report: dict[str, Any] = REPORT, allow_undecided: bool = False) -> Path:
        run_dir = tmp_path / "run"
        shutil.copytree(exported, run_dir / "export")
        shutil.copytree(quantized, run_dir / "quantize")
        benchmark = run_dir / "benchmark"
        benchmark.mkdir()
        (benchmark / "report.json").write_text(json.dumps(report))
        outputs = {"report.json": file_sha256(benchmark / "report.json")}
        (benchmark / "manifest.json").write_text(json.dumps(MANIFEST_OF_BENCHMARK | {"outputs": outputs}))
        reads = ("export", "quantize", "benchmark")
        spec = StageSpec("bundle", reads, run, lambda config: {}, lambda config: {})
        run_stage(spec, build_config({"bundle": {"allow_undecided": allow_undecided}}), run_dir)
        return run_dir / "bundle"

    return make


def test_the_model_card_says_where_the_answers_differ(make_bundle: Callable[..., Path]) -> None:
    row = {"cpu": "haswell", "images": 200, "flips": 55}
    card = (make_bundle({**REPORT, "portability": {"emulated": [row]}}) / "MODEL_CARD.md").read_text()
    assert "pp.\n\n**INT8 is not portable: 55 of 200 answers differ on haswell.**\n\nLatency" in card


def test_bundle_holds_everything_and_nothing_else(make_bundle: Callable[..., Path], dataset: Any) -> None:
    bundle = make_bundle()
    assert {path.name for path in bundle.iterdir()} == FILES | {"manifest.json"}
    assert (bundle / "labels.txt").read_text() == "ant\nbee\ncat\ndog\n"
    settings = json.loads((bundle / "preprocessing.json").read_text())
    assert settings.items() >= {"layout": "NHWC", "dtype": "uint8", "color": "RGB", "size": 16}.items()
    for name in ("student.onnx", "student.int8.onnx"):
        known = open_model(bundle / name).session.get_modelmeta().custom_metadata_map
        assert json.loads(known["kdedge.preprocessing"]) == settings
        assert json.loads(known["kdedge.classes"]) == ["ant", "bee", "cat", "dog"]
    assert known["kdedge.target"] == "portable"
    assert json.loads(known["kdedge.validation_gate"]).keys() >= {"images", "verdict", "loss_pp", "limit_pp"}
    golden = np.load(bundle / "golden_inputs.npy")
    assert (golden.shape, golden.dtype) == ((16, 16, 16, 3), np.uint8)
    validation = {image.tobytes() for image in dataset.train().images[160:]}
    assert {image.tobytes() for image in golden} <= validation
    for kind in ("fp32", "int8"):
        logits = np.load(bundle / f"golden_{kind}_logits.npy")
        assert (logits.shape, logits.dtype) == ((16, 4), np.float32)
    facts = load_manifest(bundle)["facts"]
    history = facts["history"]
    assert facts["passed"] is True
    assert history["teacher"]["arch"] == "resnet18"
    assert history["student"]["method"] == "selective"
    assert history["data"] == {"data/train": "cd" * 32, "data/test": "ef" * 32}
    assert history["weights"] == {"distill/student.safetensors": "ab" * 32}
    assert history["quantization"]["reduce_range"] is True
    assert history["gate"]["verdict"] == "passed"
    card = (bundle / "MODEL_CARD.md").read_text()
    for text in ("89.90 %", "ant, bee, cat, dog", "a CPU", "0.050", "Gate: passed; passed: true", "## Limitations"):
        assert text in card


def test_undecided_bundle_says_so_everywhere(
    make_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(gate("undecided", reason="too few images"), allow_undecided=True)
    assert load_manifest(bundle)["facts"]["passed"] is False
    assert "undecided: shipped although not passed" in (bundle / "MODEL_CARD.md").read_text()
    assert "passed: false" in (bundle / "MODEL_CARD.md").read_text()
    assert "not passed: too few images" in capsys.readouterr().err
    assert verify_bundle(bundle)["passed"] is False


def test_undecided_gate_stops_the_bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        GateError, match=r"undecided: INT8 loses 0\.10 pp on 1000 test images .*-0\.20 to 0\.40"
    ) as caught:
        make_bundle(gate("undecided", images_to_decide=4200))
    assert "about 4200 test images would decide" in str(caught.value)
    assert "the limit is 0.5 pp" in str(caught.value)
    assert "--allow-undecided" in caught.value.hint
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "bundle").exists()


def test_failed_gate_stops_the_bundle_whatever_is_allowed() -> None:
    with pytest.raises(GateError, match="the gate failed") as caught:
        check_gate(gate("failed", loss_pp=3.0), allow_undecided=True)
    assert "--allow-undecided" not in caught.value.hint


def test_damaged_report(tmp_path: Path, exported: Path, quantized: Path) -> None:
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*report\.json"):
        run(build_config(), {"export": exported, "quantize": quantized, "benchmark": tmp_path}, tmp_path)


# kdedge verify -------------------------------------------------------------------------------------------------------


def test_verify(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    result = verify_bundle(make_bundle())
    assert result["files"] == len(FILES)
    assert result["golden_images"] == 16
    assert result["passed"] is True
    assert result["manifest_sha256"] == file_sha256(tmp_path / "run" / "bundle" / "manifest.json")
    assert result["manifest_sha256"] in CliRunner().invoke(app, ["verify", result["bundle"]]).stdout
    assert result["int8"]["max_rel_diff"] <= 1e-3
    json.dumps(result)


@pytest.mark.parametrize("name", sorted(FILES))
def test_verify_finds_an_altered_and_a_missing_file(make_bundle: Callable[..., Path], name: str) -> None:
    bundle = make_bundle()
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(StageError, match=f"{name} was altered"):
        verify_bundle(bundle)
    (bundle / name).unlink()
    with pytest.raises(StageError, match=f"{name} is missing"):
        verify_bundle(bundle)


def test_verify_finds_extra_files_and_lists_all(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    (bundle / "sub").mkdir()
    (bundle / "sub" / "extra.txt").write_text("x")
    (bundle / "labels.txt").unlink()
    with pytest.raises(StageError, match=r"labels\.txt is missing; sub/extra\.txt does not belong to it"):
        verify_bundle(bundle)


def test_verify_finds_links_even_to_folders(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    (bundle / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(StageError, match="more does not belong to it"):
        verify_bundle(bundle)
    (bundle / "more").unlink()
    (bundle / "labels.txt").rename(tmp_path / "labels.txt")
    (bundle / "labels.txt").symlink_to(tmp_path / "labels.txt")
    with pytest.raises(StageError, match=r"labels\.txt is no regular file"):
        verify_bundle(bundle)


def test_verify_finds_a_manifest_that_calls_an_undecided_bundle_passed(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(gate("undecided"), allow_undecided=True)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["facts"]["passed"] = True
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StageError, match=r"manifest\.json says passed: true, report\.json says otherwise"):
        verify_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\x01", '{"schema": 1, "stage": "bundle"}', '{"schema": 9}'])
def test_verify_finds_an_unreadable_manifest(make_bundle: Callable[..., Path], text: str) -> None:
    bundle = make_bundle()
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(StageError, match="manifest"):
        verify_bundle(bundle)


def test_verify_needs_the_golden_files_in_the_manifest(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    change_manifest(bundle, lambda outputs: outputs.pop("golden_inputs.npy"))
    (bundle / "golden_inputs.npy").unlink()
    with pytest.raises(StageError, match=r"golden_inputs\.npy is missing from the manifest"):
        verify_bundle(bundle)


@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_verify_finds_other_outputs(make_bundle: Callable[..., Path], kind: str) -> None:
    bundle = make_bundle()
    path = bundle / f"golden_{kind}_logits.npy"
    logits = np.load(path)
    np.save(path, -logits)
    change_manifest(bundle, lambda outputs: outputs.update({path.name: file_sha256(path)}))
    with pytest.raises(StageError, match=r"largest logit difference .* predictions differ"):
        verify_bundle(bundle)


def test_verify_refuses_pickles(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    path = bundle / "golden_inputs.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    change_manifest(bundle, lambda outputs: outputs.update({path.name: file_sha256(path)}))
    with pytest.raises(StageError, match=r"golden_inputs\.npy is not a readable \.npy file"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("ant\nbee\ncat\n", r"labels\.txt has 3 labels, student\.onnx gives 4 logits"),
        ("ant\nbee\ndog\ncat\n", r"labels\.txt names other classes than student\.onnx"),
    ],
)
def test_verify_finds_labels_that_are_not_those_of_the_models(
    make_bundle: Callable[..., Path], labels: str, message: str
) -> None:
    bundle = make_bundle()
    (bundle / "labels.txt").write_text(labels)
    change_manifest(bundle, lambda outputs: outputs.update({"labels.txt": file_sha256(bundle / "labels.txt")}))
    with pytest.raises(StageError, match=f"contradicts itself: {message}"):
        verify_bundle(bundle)


def test_verify_of_something_else(tmp_path: Path, quantized: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        verify_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a bundle: manifest\.json is missing"):
        verify_bundle(tmp_path)
    with pytest.raises(InputError, match="holds the stage 'quantize', not a bundle"):
        verify_bundle(quantized)


def change_manifest(bundle: Path, change: Callable[[dict[str, str]], Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest["outputs"])
    (bundle / "manifest.json").write_text(json.dumps(manifest))


# kdedge predict ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("text", [b"", b"\n\n"])
def test_predict_with_nothing_on_standard_input(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    bundle = make_bundle()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    with pytest.raises(InputError, match="standard input names no images"):
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
        ("small.npy", r"holds uint8 \[1, 8, 8, 3\]; expected uint8 \[16, 16, 3\]"),
        ("float.npy", "holds float32"),
        ("pickle.npy", "not a readable .npy file"),
        ("empty", "holds no images"),
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
        with pytest.raises(InputError, match=f"{path.name} (is not a readable .npy file|holds no images)"):
            list(predict(bundle, [path]))


def test_predict_needs_a_bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a bundle: cannot read"):
        next(predict(tmp_path, []))
    bundle = make_bundle()
    (bundle / "preprocessing.json").write_text('{"size": 32}')
    with pytest.raises(InputError, match=r"takes images of 16 pixels and knows 4 classes; preprocessing\.json says 32"):
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


def test_predict_py_is_short() -> None:
    import export

    lines = Path(export.__file__).with_name("standalone.py").read_text().splitlines()
    assert len(lines) < 80

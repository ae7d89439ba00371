"""`kdedge verify`."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_models import KINDS, write_broken
from bundles import FILES, gate
from typer.testing import CliRunner

from kdedge.errors import InputError, StageError
from kdedge.export.bundle.contents import BUNDLE_FILES
from kdedge.export.bundle.verify import read_manifest, verify_bundle
from kdedge.files import file_sha256, write_json
from kdedge.manifest import SEAL, sealed
from kdedge.pipeline.cli import app


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


def test_verify_finds_folders_even_if_they_are_empty(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    (bundle / "sub" / "empty").mkdir(parents=True)
    with pytest.raises(StageError, match=r"was altered: sub/empty does not belong to it$"):
        verify_bundle(bundle)


def test_verify_finds_links_even_to_folders(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    (bundle / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(StageError, match="more does not belong to it"):
        verify_bundle(bundle)
    (bundle / "more").unlink()
    (bundle / "labels.txt").rename(tmp_path / "labels.txt")
    (bundle / "labels.txt").symlink_to(tmp_path / "labels.txt")
    with pytest.raises(StageError, match=r"labels\.txt is not a regular file"):
        verify_bundle(bundle)


def test_verify_finds_a_manifest_that_calls_an_undecided_bundle_passed(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(gate("undecided"), allow_undecided=True)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["facts"]["passed"] = True
    write_json(bundle / "manifest.json", sealed(manifest))
    with pytest.raises(StageError, match=r"manifest\.json has passed: true, which contradicts report\.json"):
        verify_bundle(bundle)


def test_verify_finds_a_history_that_is_not_that_of_the_report(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["facts"]["history"]["gate"]["loss_pp"] = 0.0
    write_json(bundle / "manifest.json", sealed(manifest))
    with pytest.raises(StageError, match=r"contradicts itself: manifest\.json has another gate than report\.json$"):
        verify_bundle(bundle)
    manifest["facts"]["history"] = None
    write_json(bundle / "manifest.json", sealed(manifest))
    with pytest.raises(StageError, match=r"another run .*; manifest\.json has another gate than report\.json$"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "stage"), [("report.json", "benchmark"), ("student.onnx", "export"), ("student.int8.onnx", "quantize")]
)
def test_verify_finds_a_file_that_was_exchanged_with_its_hash(
    make_bundle: Callable[..., Path], name: str, stage: str
) -> None:
    bundle = make_bundle()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["inputs"][f"{stage}/{name}"] = "ab" * 32
    write_json(bundle / "manifest.json", sealed(manifest))
    with pytest.raises(StageError, match=f"contradicts itself: {name} is not the file of the stage {stage}"):
        verify_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\x01", '{"schema": 1, "stage": "bundle"}', '{"schema": 9}'])
def test_verify_finds_an_unreadable_manifest(make_bundle: Callable[..., Path], text: str) -> None:
    bundle = make_bundle()
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(StageError, match="manifest"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", sorted(BUNDLE_FILES))
def test_verify_needs_every_file_in_the_manifest(make_bundle: Callable[..., Path], name: str) -> None:
    bundle = make_bundle()
    change_manifest(bundle, lambda outputs: outputs.pop(name))
    (bundle / name).unlink()
    with pytest.raises(StageError, match=f"{re.escape(name)} is missing from the manifest"):
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
        ("ant\nbee\ncat\n", r"labels\.txt has 3 labels, student\.onnx returns 4 logits"),
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


def test_no_byte_of_the_manifest_can_change(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    path = bundle / "manifest.json"
    data = path.read_bytes()
    for index in {*range(0, len(data), 7), *range(data.index(SEAL.encode()) - 5, len(data))}:
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        path.write_bytes(changed)
        with pytest.raises((StageError, InputError)):
            read_manifest(bundle)
    for changed in (data[:-1], data + b"\n", b"\xef\xbb\xbf" + data, json.dumps(json.loads(data)).encode()):
        path.write_bytes(changed)
        with pytest.raises(StageError, match=r"manifest\.json was altered"):
            read_manifest(bundle)
    path.write_bytes(data)
    assert read_manifest(bundle)[SEAL]


def test_verify_takes_a_bundle_of_before_the_seal(
    make_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest[SEAL], manifest["version"]
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    capsys.readouterr()
    assert verify_bundle(bundle)["passed"]
    said = capsys.readouterr().err
    assert "manifest.json of this older bundle has no SHA-256 of its own" in said
    assert said.count("\n") == 1


def test_verify_compares_with_a_sha256_that_was_kept(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    kept = file_sha256(bundle / "manifest.json")
    run = CliRunner().invoke
    assert run(app, ["verify", "--sha256", kept.upper(), str(bundle)]).exit_code == 0
    other = run(app, ["verify", "--sha256", "ab" * 32, str(bundle)])
    assert other.exit_code == 1
    assert f"is another bundle: manifest.json has SHA-256 {kept}, expected {'ab' * 32}" in other.stderr
    wrong = run(app, ["verify", "--sha256", kept[:-1], str(bundle)])
    assert (wrong.exit_code, "is not a SHA-256" in wrong.stderr) == (2, True)


def test_verify_ignores_what_file_managers_and_python_leave(
    make_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (bundle / name).write_text("x")
    capsys.readouterr()
    assert verify_bundle(bundle)["files"] == len(FILES)
    said = "ignored, left by a file manager or Python: .DS_Store, Thumbs.db, desktop.ini"
    assert capsys.readouterr().err == f"{said}\n"
    subprocess.run([sys.executable, "-c", "import predict"], cwd=bundle, check=True, env={})
    assert verify_bundle(bundle)["files"] == len(FILES)
    assert "__pycache__/predict." in capsys.readouterr().err
    (bundle / "sub").mkdir()
    (bundle / "Thumbs.db").rename(bundle / "sub" / "Thumbs.db")
    with pytest.raises(StageError, match=r"sub/Thumbs\.db does not belong to it"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    "gate_text", ["null", "{}", '{"verdict": null}', "[" * 100_000 + "]" * 100_000, "1" + "0" * 400], ids=str.__len__
)
def test_verify_refuses_a_damaged_report_whatever_the_manifest_says(
    make_bundle: Callable[..., Path], gate_text: str
) -> None:
    bundle = make_bundle()
    path = bundle / "report.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps({**report, "gate": "HERE"}).replace('"HERE"', gate_text))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["outputs"]["report.json"] = manifest["inputs"]["benchmark/report.json"] = file_sha256(path)
    if len(gate_text) < 100:
        manifest["facts"]["history"]["gate"] = json.loads(gate_text)
    write_json(bundle / "manifest.json", sealed(manifest))
    done = CliRunner().invoke(app, ["verify", str(bundle)])
    assert done.exit_code == 1
    assert "contradicts itself" in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_verify_refuses_a_manifest_that_is_nested_too_deeply(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    (bundle / "manifest.json").write_text('{"facts": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(StageError, match=r"manifest\.json cannot be read: nested deeper than"):
        verify_bundle(bundle)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_fails_when_it_runs_is_one_error(make_bundle: Callable[..., Path], kind: str) -> None:
    bundle = make_bundle()
    digest = file_sha256(write_broken(bundle / "student.int8.onnx", kind))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["outputs"]["student.int8.onnx"] = manifest["inputs"]["quantize/student.int8.onnx"] = digest
    write_json(bundle / "manifest.json", sealed(manifest))
    for command in (["verify", str(bundle)], ["predict", str(bundle), str(bundle / "golden_inputs.npy")]):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, done.stdout) == (1, "")
        assert re.match("error: .*student.int8.onnx (loads but does not run|returns logits)", done.stderr)
        assert isinstance(done.exception, SystemExit)


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
    write_json(bundle / "manifest.json", sealed(manifest))

"""The bundle stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FILES, REPORT, gate

from kdedge.benchmarks.session import open_model
from kdedge.errors import GateError, InputError
from kdedge.export.bundle import build as bundle
from kdedge.export.bundle.build import check_gate
from kdedge.export.bundle.contents import SBOM
from kdedge.export.bundle.verify import verify_bundle
from kdedge.files import load_json
from kdedge.manifest import load_manifest
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.stages.bundle import run


def test_the_model_card_says_where_the_answers_differ(make_bundle: Callable[..., Path]) -> None:
    row = {"cpu": "haswell", "images": 200, "flips": 55, "onnxruntime": "1.32.0", "max_abs_diff": 0.5}
    card = (make_bundle({**REPORT, "portability": {"emulated": [row]}}) / "MODEL_CARD.md").read_text()
    warning = "**INT8 is not portable: 55 of 200 predictions differ on haswell.**"
    assert f"pp.\n\n{warning}\n\nRecall and precision of every class, in percent:\n\n" in card


def test_the_model_card_lists_the_classes_that_int8_recognises_worst(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [bundle._per_class({**REPORT, "per_class": rows}) for rows in (None, [])] == ["", ""]
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "_CLASSES_SHOWN", 1)
        assert "worst of 2 classes, in percent:" in bundle._per_class(REPORT)
        assert bundle._per_class(REPORT).endswith("| c | 600 | 86.67 | 86.67 | 83.71 to 89.15 | - |\n")
    card = (make_bundle() / "MODEL_CARD.md").read_text()
    assert "| c | 600 | 86.67 | 86.67 | 83.71 to 89.15 | - |\n| a&#124;b | 400 | 95.00 | 94.75 |" in card


def test_the_model_card_has_the_memory_of_the_c_code(make_bundle: Callable[..., Path]) -> None:
    sizes = {"constant_bytes": 9000, "table_bytes": 500, "buffer_bytes": 700, "input_bytes": 68}
    card = (make_bundle({**REPORT, "c": sizes}) / "MODEL_CARD.md").read_text()
    assert "writes C99; flash 9,500 bytes and about 1 kB of code, RAM 768 bytes and the stack.\n- Classes" in card
    assert bundle.c_memory({"c": None}) == bundle.c_memory({}) == ""


def test_the_bundle_has_the_resize_mode_of_the_model(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdedge.benchmarks.session.read_resize_mode", lambda *_: "pad")
    made = make_bundle()
    settings = json.loads((made / "preprocessing.json").read_text())
    assert (settings["resize_mode"], settings["keep_aspect"]) == ("pad", True)
    assert "padded by repeating their edges (`pad`)" in (made / "MODEL_CARD.md").read_text()


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
    assert facts["needs"] == {"onnxruntime": "1.14", "opset": 18, "ir_version": 8}
    assert history["teacher"]["arch"] == "resnet18"
    assert history["student"]["method"] == "selective"
    assert history["data"] == {"data/train": "cd" * 32, "data/test": "ef" * 32}
    assert history["weights"] == {"distill/student.safetensors": "ab" * 32}
    assert history["quantization"]["reduce_range"] is True
    assert history["gate"]["verdict"] == "passed"
    assert history["quantization"]["bytes"] == (bundle / "student.int8.onnx").stat().st_size
    card = (bundle / "MODEL_CARD.md").read_text()
    for text in (
        "89.90 %",
        "| 87.99 to 91.71 | 87.88 to 91.62 |",
        "target `portable`",
        "of one image",
        "Requires onnxruntime 1.14 or newer (opset 18, IR version 8).",
        "ant, bee, cat, dog",
        "a CPU",
        "0.050",
        "Gate: passed; passed: true",
        "## Limitations",
    ):
        assert text in card


def test_the_bundle_carries_the_student_of_other_runtimes(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(others=("student.tflite", "student.int8.tflite"))
    assert (bundle / "student.int8.tflite").read_text() == "student.int8.tflite"
    verify_bundle(bundle)
    named = {part["name"] for part in json.loads((bundle / SBOM).read_text())["components"]}
    assert {"student.tflite", "student.int8.tflite"} <= named


def test_history_and_card_are_of_the_model_that_is_shipped(
    make_bundle: Callable[..., Path], quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((quantized / "candidates.json").read_text())
    ground = {**record["rungs"][0], "rung": "search", "sqnr_db": 11.1, "loss_pp": 4.0}
    shipped = {**ground, "rung": "bias correction", "sqnr_db": 22.2, "loss_pp": 0.25}
    known = {**record, "rung": "bias correction", "rungs": [ground, shipped]}
    monkeypatch.setattr(
        bundle, "load_json", lambda path, keys: known if path.name == "candidates.json" else load_json(path, keys)
    )
    begun = {**REPORT["student"], "epochs": 0, "weights_sha256": ["ab0dc3c4" * 8]}
    made = make_bundle({**REPORT, "student": begun, "latency": [{**REPORT["latency"][0], "batch": 8}]})
    history = load_manifest(made)["facts"]["history"]
    assert history["student"]["weights_sha256"] == ["ab0dc3c4" * 8]
    found = history["quantization"]
    assert (found["name"], found["target"], found["rung"]) == (record["chosen"], "portable", "bias correction")
    assert (found["sqnr_db"], found["loss_pp"], found["validation_images"]) == (22.2, 0.25, record["scored_images"])
    assert found.keys().isdisjoint({"p50_ms", "top1_pct", "flips"})  # of the search's choice
    card = (made / "MODEL_CARD.md").read_text()
    assert "images, then bias correction)" in card
    assert "starts from: a student (ab0dc3c4); epochs in this run: 0" in card
    assert "Latency of a batch of 8 images on a CPU" in card
    assert "| int8 | CPUExecutionProvider | 1 | 0.050 |" in card


def test_undecided_bundle_says_so_everywhere(
    make_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rare = {"class": "bee", "n": 17, "fp32_top1_pct": 5.8824, "int8_top1_pct": 0.0, "fp32_only_right": 1}
    report = {**gate("undecided", reason="too few images"), "per_class": [{**rare, "int8_only_right": 0}]}
    bundle = make_bundle(report, allow_undecided=True)
    assert "**Hardly ever recognised: bee (0 of 17).**" in (bundle / "MODEL_CARD.md").read_text()
    assert load_manifest(bundle)["facts"]["passed"] is False
    assert "undecided: shipped although not passed" in (bundle / "MODEL_CARD.md").read_text()
    assert "passed: false" in (bundle / "MODEL_CARD.md").read_text()
    assert "marked as not passed: the gate is undecided" in capsys.readouterr().err
    assert verify_bundle(bundle)["passed"] is False


def test_undecided_gate_stops_the_bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"the gate is undecided: too few images$") as caught:
        make_bundle(gate("undecided", reason="too few images"))
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

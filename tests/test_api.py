"""`import kdedge`: load a bundle, read a report, run the gate, with numpy and onnxruntime alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kdedge
from kdedge.errors import InputError

REFERENCE = Path(__file__).resolve().parents[1] / "artifacts" / "reference"
BUNDLE = REFERENCE / "bundle"


def test_a_loaded_bundle_classifies_frames_of_any_size():
    golden = np.load(BUNDLE / "golden_inputs.npy")
    expected = np.load(BUNDLE / "golden_int8_logits.npy").argmax(1)
    classifier = kdedge.load(BUNDLE)
    assert [answer["index"] for answer in classifier.predict(golden)] == expected.tolist()
    assert classifier.predict(golden[0])["label"] == classifier.labels[expected[0]]
    assert classifier.predict(golden[0].repeat(2, 0).repeat(2, 1))["index"] == expected[0]
    fp32 = kdedge.load(str(BUNDLE), fp32=True).predict(golden)
    assert [answer["index"] for answer in fp32] == np.load(BUNDLE / "golden_fp32_logits.npy").argmax(1).tolist()


def test_what_is_no_bundle_is_one_error(tmp_path):
    with pytest.raises(InputError, match="is not a bundle"):
        kdedge.load(tmp_path)


def test_a_report_is_read():
    assert kdedge.read_report(BUNDLE)["gate"]["verdict"] == "passed"


def test_the_gate_decides_from_paired_answers():
    fp32 = np.ones(10_000, bool)
    assert kdedge.gate(fp32, fp32, 0.5)["verdict"] == "passed"
    int8 = fp32.copy()
    int8[:300] = False
    assert kdedge.gate(fp32, int8, 0.5)["verdict"] == "failed"
    assert kdedge.gate(fp32[:10], int8[300:310], 0.5)["verdict"] == "undecided"


def test_the_import_is_light():
    code = "import sys, kdedge; print(sorted({'numpy', 'onnxruntime', 'torch', 'typer', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""A signal through the whole pipeline, and its bundle: predict, predict.py, verify, report."""

import json
import re
import shutil
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import signals
from command_line import invoke
from image_folders import make_tree

from kdedge import load
from kdedge.benchmarks.report.file import read_report
from kdedge.manifest import load_manifest
from kdedge.pipeline.data.windows import dataset

ROWS = 200
IMAGES = re.compile(r".*(?<![-\w])(?:images?|pixels?|img)\b.*")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signal")
    data = signals.make_npz(folder / "waves.npz")
    read = Mock(wraps=dataset.open_windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "open_windows", read)
        patch.setattr("kdedge.export.quantize.search._LATENCY_SECONDS", 0.01)
        options = ("--data", f"windows:{data}", "--layout", "NLC", "--rate", signals.RATE, *signals.TINY)
        result = invoke("run-all", *options, "--allow-undecided", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert read.call_count == 1, "all stages share one reading of the recordings"
    assert "predict" in result.output
    assert "RECORDING.csv" in result.output
    assert not IMAGES.search(result.output), IMAGES.findall(result.output)
    return folder / "run"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return signals.write_csv(tmp_path_factory.mktemp("new") / "new.csv", signals.waves(1, 1, ROWS, 5)[0])


def predicted(run, *arguments):
    result = invoke("predict", run / "bundle", *arguments, "--json")
    return result, [json.loads(line) for line in result.stdout.splitlines()]


def test_the_report_speaks_of_windows_and_groups(run):
    report = read_report(run / "benchmark" / "report.json")
    assert report["accuracy"]["input"]["channels"] == list(signals.CHANNELS)
    assert "image_size" not in report["accuracy"]
    assert (report["gate"]["groups"], report["accuracy"]["n"]) == (6, 24)
    page = (run / "benchmark" / "report.md").read_text()
    assert "24 test windows of 6 groups" in page
    assert "real-time factor" in page
    assert not IMAGES.search(page)
    assert (run / "benchmark" / "figures" / "examples.png").stat().st_size > 1000
    assert not load_manifest(run / "distill")["facts"]["flip"]


def test_every_layer_is_integer_and_the_bundle_verifies(run):
    proof = read_report(run / "benchmark" / "report.json")["int8_proof"]
    assert (proof["integer_convs"], proof["float_convs"], proof["integer_gemms"], proof["float_gemms"]) == (5, 0, 1, 0)
    result = invoke("verify", run / "bundle")
    assert result.exit_code == 0, result.output
    card = (run / "bundle" / "MODEL_CARD.md").read_text()
    assert "`signal`, float32, `[N, 64, 2]`" in card
    assert "test windows" in card
    assert not IMAGES.search(card)


def test_one_answer_per_window_with_its_start_as_predict_py_gives(run, recording):
    _, rows = predicted(run, recording)
    assert [(row["row"], row["start_s"]) for row in rows] == [(0, 0.0), (64, 1.28), (128, 2.56)]
    assert {row["label"] for row in rows} <= {"slow", "fast"}
    script = [sys.executable, str(run / "bundle" / "predict.py"), str(recording)]
    alone = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line) for line in alone] == rows
    table = invoke("predict", run / "bundle", recording).stdout.splitlines()
    assert table[1].split()[1:5] == [f"{100 * rows[1]['probability']:.2f}", "%", "1.280", "s"]
    windows = signals.waves(1, 1, ROWS, 5)[0][:128].reshape(2, 64, 2)
    answers = load(run / "bundle").predict(np.round(windows, 5))
    assert [answer["label"] for answer in answers] == [row["label"] for row in rows[:2]]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("time,ay,ax", ROWS, "has the channels ay, ax; expected ax, ay, in this order"),
        ("time,ax,ay", 60, "has 60 rows, fewer than a window of 64"),
        ("time_ms,ax,ay", ROWS, "has 50000 rows per second, expected 50"),
    ],
)
def test_recordings_of_other_channels_or_rate_are_refused(run, tmp_path, header, rows, message):
    file = signals.write_csv(tmp_path / "other.csv", signals.waves(1, 1, rows, 5)[0], header)
    result, answers = predicted(run, file)
    assert (result.exit_code, answers) == (1, [])
    assert message in " ".join(result.output.split())
    script = [sys.executable, str(run / "bundle" / "predict.py"), str(file)]
    assert subprocess.run(script, capture_output=True, check=False).returncode == 1


def test_a_bad_recording_in_a_folder_stops_no_other(run, recording, tmp_path):
    for name in ("a.csv", "c.CSV", "._a.csv"):
        shutil.copy(recording, tmp_path / name)
    (tmp_path / "b.csv").write_text("nonsense\n")
    (tmp_path / "empty").mkdir()
    result, answers = predicted(run, tmp_path, tmp_path / "empty", recording)
    assert result.exit_code == 1
    assert [answer["file"] for answer in answers[::3]] == [
        *map(str, (tmp_path / "a.csv", tmp_path / "c.CSV", recording))
    ]
    for message in ("b.csv has no rows", "empty has no recordings"):
        assert message in " ".join(result.output.split())


def test_names_and_time_are_optional(run, recording, tmp_path):
    values = signals.waves(1, 1, ROWS, 5)[0]
    np.savetxt(tmp_path / "plain.csv", values, delimiter=";", fmt="%.5f")
    _, plain = predicted(run, tmp_path / "plain.csv")
    _, named = predicted(run, recording)
    assert [{**row, "file": ""} for row in plain] == [{**row, "file": ""} for row in named]


def test_data_of_another_kind_do_not_meet_the_options_of_the_bundle_or_run(run, tmp_path):
    images = make_tree(tmp_path / "images", {"slow": 9, "fast": 9})
    result = invoke("benchmark", run / "bundle", "--data", images, "--out", tmp_path / "report")
    assert result.exit_code == 2
    assert "the data set has images of 32x32" in " ".join(result.output.split())
    result = invoke("distill", "--data", images, "--out", run)
    assert result.exit_code == 2
    assert "teacher cannot take images of 32x32" in " ".join(result.output.split())

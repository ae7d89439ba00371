"""How `kdedge benchmark BUNDLE` ends: what it prints, and with which exit code."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from image_folders import make_tree
from typer.testing import CliRunner

from kdedge.errors import InputError
from kdedge.files import write_json
from kdedge.manifest import sealed
from kdedge.pipeline import measure_bundle
from kdedge.pipeline.cli import app
from kdedge.pipeline.config.build import build_config

BUNDLE = Path(__file__).parents[2] / "artifacts" / "reference" / "bundle"


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Return a function that "measures" the reference bundle: its report with another gate."""

    def run(*arguments, same=True, **gate):
        report = json.loads((BUNDLE / "report.json").read_text())
        report["run"]["same_test_images"] = same
        report["gate"] |= gate

        def benchmark(_config, _bundle, out):
            (out / "report.json").write_text(json.dumps(report))

        monkeypatch.setattr("kdedge.pipeline.measure_bundle.benchmark_bundle", benchmark)
        return CliRunner().invoke(app, ["benchmark", str(BUNDLE), "--out", str(tmp_path), *arguments])

    return run


FAILED = {"verdict": "failed", "passed": False, "cause": "loss", "reason": "INT8 loses 3.00 pp."}


@pytest.mark.parametrize(
    ("same", "gate", "code"),
    [
        (True, {}, 0),
        (True, FAILED, 3),
        (False, FAILED, 0),
        (True, {**FAILED, "verdict": "undecided"}, 0),
        (False, {**FAILED, "verdict": "undecided"}, 0),
    ],
)
def test_only_a_gate_that_fails_on_the_images_of_the_bundle_ends_with_3(measure, same, gate, code):
    assert measure(same=same, **gate).exit_code == code


@pytest.mark.parametrize(("options", "expected"), [((), (2.0, "balanced")), (("--limit-pp", "1"), (1.0, "balanced"))])
def test_a_bundle_is_judged_by_its_own_limit_and_metric(tmp_path, monkeypatch, options, expected):
    bundle, judged = tmp_path / "bundle", []
    shutil.copytree(BUNDLE, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["facts"]["history"]["gate"] |= {"limit_pp": 2.0, "metric": "balanced"}
    write_json(bundle / "manifest.json", sealed(manifest))

    def check(config, *_):
        judged.append((config.benchmark.limit_pp, config.benchmark.metric))
        raise InputError("checked")

    monkeypatch.setattr("kdedge.pipeline.measure_bundle.check_benchmark", check)
    CliRunner().invoke(app, ["benchmark", str(bundle), "--out", str(tmp_path / "out"), *options])
    assert judged == [expected]


@pytest.mark.parametrize(("options", "folder"), [((), "benchmark"), (("--out", "artifacts/run"), "run")])
def test_the_report_of_a_bundle_is_where_out_says(options, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr("kdedge.pipeline.measure_bundle.check_benchmark", lambda *_: None)
    monkeypatch.setattr("kdedge.pipeline.measure_bundle.benchmark_bundle", lambda *given: written.append(given[2]))
    CliRunner().invoke(app, ["benchmark", str(BUNDLE), *options])
    assert written == [Path("artifacts") / folder]


def test_the_reason_of_the_gate_is_given_once(measure):
    result = measure(**FAILED)
    assert " ".join(result.output.split()).count("INT8 loses 3.00 pp") == 2  # the summary, and the JSON line
    assert "error: the gate failed\n" in result.stderr


def test_json_ends_stdout_where_it_is_not_a_terminal_and_is_alone_where_asked_for(measure, monkeypatch):
    assert json.loads(measure().stdout.splitlines()[-1])["gate"]["verdict"] == "passed"
    terminal = SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("kdedge.pipeline.commands.stages.sys", terminal)
    assert not [line for line in measure().stdout.splitlines() if line.startswith("{")]
    assert json.loads(measure("--json").stdout)["gate"]["verdict"] == "passed"


def test_a_runtime_that_the_bundle_lacks_or_the_host_is_named(measure, monkeypatch):
    result = measure("--runtime", "tflite")
    assert "--runtime 'tflite': unknown name 'tflite'" in " ".join(result.stderr.split())
    monkeypatch.setattr("kdedge.export.runtimes.runtime.importlib.util.find_spec", lambda name: None)
    result = measure("--runtime", "openvino")
    assert result.exit_code == 2
    assert "OpenVINO IR needs openvino" in result.stderr
    assert "[runtimes]" in result.stderr


@pytest.mark.parametrize("divided", [False, True])
def test_images_that_are_no_test_images_are_counted(divided, tmp_path, monkeypatch, capsys):
    classes = (BUNDLE / "labels.txt").read_text().splitlines()
    make_tree(tmp_path / "new" / ("test" if divided else ""), dict.fromkeys(classes, 5))
    monkeypatch.setattr(measure_bundle, "verify_bundle", lambda bundle: None)
    monkeypatch.setattr(measure_bundle, "run_benchmark", lambda *_, **__: {})
    config = build_config({"data": {"source": f"folder:{tmp_path / 'new'}"}})
    measure_bundle.benchmark_bundle(config, BUNDLE, tmp_path)
    warned = "warning: 40 of 50 images of folder:new are not measured: only test images" in capsys.readouterr().err
    assert warned != divided

"""`kdedge report`: one report as Markdown, two of them compared, and clear words about what is no report."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdedge.benchmarks.interval import wilson_interval_pct
from kdedge.benchmarks.report.compare import compare_reports, same_test_images
from kdedge.benchmarks.report.compare_text import comparison_markdown, print_comparison
from kdedge.benchmarks.report.file import load_report, read_report
from kdedge.benchmarks.report.pages import render_html, render_markdown
from kdedge.errors import InputError
from kdedge.pipeline.cli import app

REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference"
REPORT: dict[str, Any] = json.loads((REFERENCE / "benchmark-vnni" / "report.json").read_text())
CURRENT: dict[str, Any] = json.loads((REFERENCE / "benchmark" / "report.json").read_text())
DELETE = object()


def changed(**changes: Any) -> dict[str, Any]:
    """Return the reference report with ``section__key=value`` changed, or deleted."""
    report = copy.deepcopy(REPORT)
    for path, value in changes.items():
        section, _, key = path.partition("__")
        place, name = (report[section], key) if key else (report, section)
        if value is DELETE:
            del place[name]
        else:
            place[name] = value
    return report


def emulated(**cpus: tuple[int, int]) -> dict[str, Any]:
    """Return a section ``portability`` in which some answers of so many differ on each CPU."""
    return {
        "emulated": [
            {"cpu": cpu, "flips": flips, "images": images, "max_abs_diff": 0.5, "onnxruntime": "9.9"}
            for cpu, (flips, images) in cpus.items()
        ]
    }


def compare(b: dict[str, Any], a: dict[str, Any] = REPORT) -> dict[str, Any]:
    result = compare_reports(a, b, ("old", "new"))
    assert json.loads(json.dumps(result)) == result
    return result


def value(result: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = (row for row in result["values"] if row["name"] == name)
    return dict(row)


@pytest.mark.parametrize("path", [".", "benchmark", "benchmark/report.json", "bundle"])
def test_a_report_is_found_by_run_benchmark_bundle_and_file(path: str) -> None:
    assert load_report(REFERENCE / path) == CURRENT


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{", "cannot read the report"),
        ("\x00\xff", "is not a report of kdedge: it is not a text file"),
        ("[]", r"it is \[\], expected an object"),
        ("{}", "schema is None, expected 1"),
        (changed(schema=2), "schema is 2, expected 1"),
        (changed(gate=DELETE), "gate is missing"),
        (changed(host=[]), r"host is \[\], expected an object"),
        (changed(gate__loss_pp=DELETE), r"gate\.loss_pp is missing"),
        (changed(gate__loss_pp="0.1"), r"gate\.loss_pp is '0\.1'"),
        (changed(accuracy__n=True), r"accuracy\.n is True"),
        (changed(gate__verdict="fine"), "gate.verdict is 'fine', expected one of passed, failed, undecided"),
        (changed(unavailable=None), "unavailable is None, expected a list"),
        (changed(latency={}), "latency is {}, expected a list"),
        (changed(latency=[{**REPORT["latency"][0], "p50_ms": 0}]), r"latency\[0\]\.p50_ms is 0, expected a positive n"),
        (changed(latency=[{**REPORT["latency"][0], "trust": {}}]), r"latency\[0\]\.trust\.verdict is missing"),
        (changed(portability=[]), r"portability is \[\], expected an object"),
        (changed(portability={"emulated": [1]}), r"portability\.emulated\[0\] is 1, expected an object"),
        (changed(portability={"emulated": [{}]}), r"portability\.emulated\[0\]\.cpu is missing"),
        (changed(portability=emulated(haswell=(0, 0))), r"emulated\[0\]\.images is 0, expected a positive whole"),
        (changed(run__versions=[]), r"run\.versions is \[\]"),
        (changed(teacher__test_top1_pct=math.inf), r"teacher\.test_top1_pct is inf"),
        (changed(accuracy__n=math.nan), r"accuracy\.n is nan"),
        (changed(gate=None), "gate is None, expected an object"),
        (changed(gate={}), r"gate\.limit_pp is missing"),
        (changed(run__wall_s=10**400), "a whole number of more than 64 bits"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 64 levels"),
        (changed(run__wall_s="long"), r"run\.wall_s is 'long'"),
        (changed(accuracy__onnx_int8_ci95_pct=[]), r"accuracy\.onnx_int8_ci95_pct is \[\], expected two numbers"),
        (changed(accuracy__onnx_fp32_ci95_pct=[None, 90]), r"onnx_fp32_ci95_pct is \[None, 90\], expected two numbers"),
        (changed(unavailable=[{"provider": "CUDA", "reason": "none"}]), r"unavailable\[0\]\.fix is missing"),
        (changed(memory={}), "memory is {}, expected a list"),
        (changed(memory=[{"model": "int8"}]), r"memory\[0\]\.peak_rss_bytes is missing.*and 3 more"),
        (changed(per_class=[{"class": "cat"}]), r"per_class\[0\]\.n is missing"),
        (changed(answer_changes=[{"label": "a", "fp32": "a", "int8": "b"}]), r"answer_changes\[0\]\.count is missing"),
        (changed(quantization=[]), r"quantization is \[\], expected an object"),
        (changed(latency=[{}]), r"latency\[0\]\.provider is missing.*and 5 more"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, report: Any, message: str) -> None:
    text = report if isinstance(report, str) else json.dumps(report)
    (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        load_report(tmp_path)
    assert "kdedge benchmark" in caught.value.hint


def test_a_report_cannot_change_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(changed(host__cpu="\x1b[2Ja CPU", run__data="a\nb\u202e")))
    shown = load_report(tmp_path)
    assert (shown["host"]["cpu"], shown["run"]["data"]) == (r"\u001b[2Ja CPU", r"a\nb\u202e")
    assert read_report(tmp_path)["run"]["data"] == "a\nb\u202e"


OPTIONAL = ("memory", "per_class", "answer_changes", "portability", "quantization", "training", "beside", "benchmark")


@pytest.mark.parametrize("path", [*sorted(REFERENCE.rglob("report.json")), None], ids=lambda p: p and p.parent.name)
def test_what_is_a_report_can_be_shown(tmp_path: Path, path: Path | None) -> None:
    """All that are kept, also of earlier versions, and one that holds no more than is needed."""
    if path is None:
        path = tmp_path / "report.json"
        path.write_text(json.dumps({key: value for key, value in CURRENT.items() if key not in OPTIONAL}))
    report = load_report(path)
    for text in (render_markdown(report, []), render_html(report, [])):
        assert f"{report['accuracy']['onnx_int8_top1_pct']:.2f} %" in text


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no report\.json"):
        load_report(tmp_path)
    run_dir = tmp_path / "my run"
    run_dir.mkdir()
    (run_dir / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no report yet") as caught:
        load_report(run_dir)
    assert caught.value.hint == f"run `kdedge benchmark --out '{run_dir}'` first"


def test_a_report_compared_with_itself_differs_in_nothing() -> None:
    result = compare(REPORT)
    assert result["notes"] == []
    assert {row["difference"] for row in result["values"]} == {0}
    assert {row["ratio"] for row in result["latency"]} == {1}
    assert len(result["latency"]) == len(REPORT["latency"])


def test_differences_are_b_minus_a_and_ratios_b_over_a() -> None:
    rows = [{**REPORT["latency"][1], "p50_ms": 2 * REPORT["latency"][1]["p50_ms"], "p95_ms": 0.7}]
    new = changed(accuracy__onnx_int8_top1_pct=91.57, gate__verdict="failed", size__int8_bytes=1_302_519, latency=rows)
    result = compare(new)
    assert value(result, "INT8 top-1")["difference"] == 1.0
    assert value(result, "INT8 file")["difference"] == 100
    assert result["gate"] == {"a": "passed", "b": "failed"}
    found = {(row["model"], row["batch"]): row for row in result["latency"]}
    both, only_a = found["int8", 1], found["fp32", 32]
    assert both["ratio"] == 2
    assert both["b"] == {
        "p50_ms": rows[0]["p50_ms"], "p90_ms": rows[0]["p90_ms"], "p95_ms": 0.7, "p99_ms": rows[0]["p99_ms"],
        "throughput_ips": rows[0]["throughput_ips"], "trust": "steady",
    }  # fmt: skip
    assert (only_a["b"], only_a["ratio"]) == (None, None)
    assert compare(REPORT, new)["latency"][0]["ratio"] == 0.5


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """His example (a): 56 of 70 against 48 of 80 is 0.2 with 0.0524 to 0.3339 (method 10, table II)."""
    reports = []
    for right, n in ((48, 80), (56, 70)):
        top1, interval = 100 * right / n, wilson_interval_pct(right, n)
        reports.append(changed(accuracy__n=n, accuracy__onnx_int8_top1_pct=top1, accuracy__onnx_int8_ci95_pct=interval))
    row = value(compare(reports[1], reports[0]), "INT8 top-1")
    assert row["difference"] == pytest.approx(20)
    assert row["difference_ci95"] == pytest.approx([5.24, 33.39], abs=0.006)


def test_answers_on_emulated_cpus_are_compared_where_a_report_has_them(tmp_path: Path) -> None:
    old = changed(portability=emulated(haswell=(30, 200)))
    new = changed(portability=emulated(haswell=(5, 1000), arm=(0, 1000)))
    result = compare(new, old)
    row = {"name": "other predictions on haswell", "unit": "%", "a": 15.0, "b": 0.5, "difference": -14.5}
    assert value(result, "other predictions on haswell") == row
    assert value(result, "other predictions on arm") == {
        "name": "other predictions on arm", "unit": "%", "a": None, "b": 0.0, "difference": None,
    }  # fmt: skip
    text = comparison_markdown(result)
    assert "| other predictions on haswell, % | 15.00 | 0.50 | -14.50 |  |" in text
    assert "| other predictions on arm, % | – | 0.00 | – |  |" in text
    assert "other predictions" not in comparison_markdown(compare(changed(portability=None)))
    (tmp_path / "report.json").write_text(json.dumps(new))
    assert load_report(tmp_path) == new


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"host__cpu": "another"}, "other hosts"),
        ({"host__cores": 64}, "other hosts"),
        ({"host__onnxruntime": "1.99"}, "another onnxruntime"),
        ({"benchmark": {"affinity": "0", "spinning": False}}, "other CPUs or spinning threads"),
        ({"run__data": "sample"}, "other test data"),
        ({"accuracy__n": 9}, "other test data"),
        ({"run__same_test_images": False}, "other test data"),
        ({"gate__limit_pp": 1.0}, "another limit of the gate: 0.5 and 1 pp"),
        ({"gate__metric": "balanced"}, "another metric of the gate"),
    ],
)
def test_what_makes_numbers_incomparable_is_said(changes: dict[str, Any], note: str) -> None:
    for result in (compare(changed(**changes)), compare(REPORT, changed(**changes))):
        assert len(result["notes"]) == 1
    assert compare(changed(**changes))["notes"][0].startswith(note)


def test_test_images_are_told_apart_by_their_hash_where_both_reports_have_it() -> None:
    here, moved = ({"accuracy__images_sha256": "1" * 64, "run__data": f"folder:{name}"} for name in ("a", "b"))
    other = {**here, "accuracy__images_sha256": "2" * 64}
    assert same_test_images(changed(**here), changed(**moved))
    assert not same_test_images(changed(**here), changed(**other))
    assert not same_test_images(changed(**here), changed())
    # Another size gives another hash of the same images.
    larger = {**other, "accuracy__image_size": 64}
    assert same_test_images(
        changed(**{**here, "accuracy__image_size": 32}), changed(**{**larger, "run__data": "folder:a"})
    )
    assert same_test_images(changed(**{**here, "run__data": REPORT["run"]["data"]}), changed())
    # So does another resize mode. Older reports do not have it.
    padded = {**other, "accuracy__resize_mode": "pad", "run__data": "folder:a"}
    for mode in ({"accuracy__resize_mode": "squeeze"}, {}):
        assert same_test_images(changed(**here, **mode), changed(**padded))
        assert not same_test_images(changed(**here, **mode), changed(**other))
    # And so does another color.
    grey = {**other, "accuracy__image_size": 32, "accuracy__color": "grey", "run__data": "folder:a"}
    assert same_test_images(changed(**{**here, "accuracy__image_size": 32}), changed(**grey))


def strange() -> dict[str, Any]:
    """Return a report with everything long, missing or in need of escapes."""
    row = {**REPORT["latency"][0], "provider": "TensorrtExecutionProvider", "batch": 4096, "threads": 64}
    return changed(
        host__cpu="A processor | with a name that is longer than any line of a terminal of eighty columns would be",
        host__gpu="A GPU",
        run__data="folder:/a/path/that/is/quite/long/and/goes/on/and/on/for/more/than/eighty/columns/without/a/blank",
        teacher__test_top1_pct=None,
        latency=[*REPORT["latency"], {**row, "p50_ms": 1311.222}],
    )


def test_the_table_fits_80_columns_and_names_hosts_and_trust(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(compare(strange()))
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for word in ("Xeon", "A processor", "A GPU", "mind: other hosts", "Tensorrt", "4096", "1311.222", "noisy", "+0.00"):
        assert word in text
    heads = [line.split() for line in lines if line.lstrip().startswith("p50 in ms")]
    assert [" ".join(words) for words in heads] == ["p50 in ms model batch threads A B B / A trust A trust B"]
    assert lines[-1].strip() == "noisy: do not quote"


def test_markdown_tables_are_whole() -> None:
    text = comparison_markdown(compare(strange()))
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
        assert re.fullmatch(r"\|(-+:?\|)+", block.splitlines()[1])
    assert "**Mind:** other hosts" in text
    assert "| teacher top-1, % | 85.93 | – | – |  |" in text


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_one_report_is_printed_as_markdown_or_json() -> None:
    result = invoke(REFERENCE)
    assert result.stdout.rstrip("\n") == render_markdown(CURRENT, []).rstrip("\n")
    assert result.stdout.startswith("# Passed")
    assert json.loads(invoke(REFERENCE, "--json").stdout) == CURRENT


def test_two_reports_are_compared_in_every_form() -> None:
    bundle = REFERENCE / "bundle"
    result = json.loads(invoke(REFERENCE, bundle, "--json").stdout)
    assert (result["a"]["report"], result["b"]["report"]) == (str(REFERENCE), str(bundle))
    assert invoke(REFERENCE, bundle, "--markdown").stdout.startswith("- **A**: ")
    assert "B / A" in invoke(REFERENCE, bundle).stdout


def test_json_and_markdown_exclude_each_other(tmp_path: Path) -> None:
    result = invoke(REFERENCE, REFERENCE, "--json", "--markdown")
    assert result.exit_code == 2
    assert "--json and --markdown exclude each other" in result.stderr
    assert invoke(REFERENCE, tmp_path).exit_code == 2


def test_reports_need_the_base_install_only() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'matplotlib'): sys.modules[name] = None\n"
        "from kdedge.pipeline.cli import app; app(['report', sys.argv[1], sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code, REFERENCE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

"""Help of the command line."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMANDS, invoke
from typer.testing import CliRunner

from kdedge import __version__
from kdedge.pipeline.cli import app
from kdedge.pipeline.config import SECTIONS

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_what_a_new_user_needs_first():
    text = invoke("--help").output
    first, *more = (re.findall(r"^│ ([a-z-]+) ", panel, re.MULTILINE) for panel in text.split("╭─")[2:])
    assert sorted(first) == ["data", "doctor", "predict", "report", "run-all", "verify"]
    assert sorted(COMMANDS) == sorted(sum(more, first))
    assert text.index("More commands: single stages") < text.index("│ teacher ") < text.index("More commands: studies")


def test_help_ends_with_the_command_of_the_demo():
    """Whose gate may be undecided: without the option it would end with an error."""
    demo = re.search(r"^demo:.*\n\t\$\(BIN\)/(kdedge .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert demo in invoke("--help").output


def test_version_is_printed():
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"kdedge {__version__}\n")


def test_run_all_shows_the_ten_options_of_the_readme_and_all_when_asked():
    readme = (ROOT / "README.md").read_text()
    ten = re.findall(r"^\| `(--[\w-]+)` \|", readme[readme.index("## Ten options") :], re.MULTILINE)
    flag = re.compile(r"^│ (--[\w-]+)", re.MULTILINE)
    assert sorted(flag.findall(invoke("run-all", "--help").output)) == sorted([*ten, "--help", "--help-all"])
    result = invoke("run-all", "--help-all")
    fields = [item.metadata["flag"] for section in SECTIONS.values() for item in dataclasses.fields(section)]
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    wide = CliRunner().invoke(app, ["run-all", "--help-all"], env={"COLUMNS": "160"}).output
    assert {*filter(None, fields), "--config", "--preset"} <= set(flag.findall(wide))
    assert all(f"╭─ {section} ─" in result.output for section in SECTIONS)


@pytest.mark.parametrize("command", ["teacher", "distill", "benchmark", "compare", "ablate"])
def test_a_command_with_many_options_shows_the_first_ones(command):
    short, full = (invoke(command, option).output for option in ("--help", "--help-all"))
    assert "--out" in short
    assert len(short.splitlines()) < len(full.splitlines()) / 1.5


def test_an_option_that_help_does_not_show_is_suggested():
    assert "--hint-blocks" in invoke("run-all", "--hint-block", "2").stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits_80_columns(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


def test_help_shows_defaults_ranges_and_choices():
    text = " ".join(invoke("distill", "--help-all").output.replace("│", " ").split())
    assert "(sgd, adam; default: sgd)" in text
    assert "blocks chosen again while training. (default: selective)" in text
    assert "(at least 0; default: 20 for 45,000 images, more for fewer)" in text


@pytest.mark.parametrize("command", ["run-all", "teacher", "distill", "bundle"])
def test_help_shows_no_type_for_a_flag_that_takes_no_value(command):
    lines = [
        line
        for line in invoke(command, "--help-all" if command != "bundle" else "--help").output.splitlines()
        if "--help" not in line
    ]
    assert not [line for line in lines if "bool" in line.lower()]


@pytest.mark.parametrize(
    ("command", "old", "warning"),
    [
        ("distill", ["--no-drop-hints"], "--drop-hints is now --adapt-to-teacher"),
        ("distill", ["--hint-layers", "2"], "--hint-layers is now --hint-blocks"),
        ("compare", ["--reach", "80", "--epochs", "x"], "--reach is now --target-accuracy"),
    ],
)
def test_an_old_name_of_an_option_still_works_and_names_the_new_one(command, old, warning, tmp_path):
    result = invoke(command, "--out", tmp_path, *old)
    assert result.exit_code == 2
    assert warning in result.output
    assert "No such option" not in result.output
    result = invoke("benchmark", "--out", tmp_path, "--beside", tmp_path)
    assert "warning: --beside is now --compare-with; the next release removes the old name" in result.output


def test_data_offers_nothing_that_has_no_effect_on_it():
    text = invoke("data", "--help").output
    assert not [flag for flag in ("--force", "--preset") if flag in text]


def test_help_imports_nothing_heavy():
    code = (
        "import sys, typer.testing as t, kdedge.pipeline.cli as c;"
        "t.CliRunner().invoke(c.app, ['run-all', '--help-all']);"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"

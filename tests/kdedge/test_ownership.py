"""Whatever a user has under the names that kdedge uses stays as it is, byte for byte."""

import json
import shutil
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from kdedge.errors import InputError
from kdedge.export.c99.source import C_FILES
from kdedge.manifest import load_manifest
from kdedge.pipeline.cli import app
from kdedge.pipeline.exchange import clean_up
from kdedge.pipeline.run_dir import StageSpec, lock_run, run_stage
from kdedge.pipeline.stages.registry import STAGES

REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference"
RUN_NAMES = [
    *(name for stage in STAGES for name in (stage, f".{stage}.partial", f".{stage}.old")),
    "bundle.previous",
    "config.json",
    ".lock",
]
STUDY_NAMES = ["teacher", "evaluation_results.csv", "block_variances.csv", "comparison.md", "figures", "config.json"]
REPORT_NAMES = ["report.json", "report.html", "report.md", "figures", "latency_samples.json", ".lock"]
OTHER_NAMES = ["e20/seed0/kd/teacher", "e20/seed0/kd/distill", "data.html", "photo.png", *C_FILES]
FILES = (".csv", ".md", ".json", ".html", ".lock", ".png", ".c", ".h")


def kdedge(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def put_foreign(path):
    """Write what a user may have under a name: a file, or a folder with files that have kdedge's names, too."""
    if path.name.endswith(FILES):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"model": "mine"}')
        return
    (path / "src").mkdir(parents=True)
    (path / "src" / "main.py").write_text("print('mine')")
    (path / "manifest.json").write_text('{"name": "an app", "icons": []}')
    (path / "accuracy.png").write_text("mine")


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("name", RUN_NAMES)
def test_a_run_refuses_foreign_files_under_its_names_before_any_work(name, force, tiny_options, tmp_path):
    put_foreign(tmp_path / name)
    before = content(tmp_path)
    result = kdedge("run-all", *tiny_options, "--out", tmp_path, *force)
    assert result.exit_code == 2, result.output
    assert f"{tmp_path / name} was not written by kdedge" in " ".join(result.stderr.split())
    assert "give another --out" in result.stderr
    assert "rm " not in result.stderr
    assert "running" not in result.stderr
    assert content(tmp_path) == before


# The arguments of every command. OUT is a folder full of foreign files, and the current one.
BUNDLE, BENCHMARK = REFERENCE / "bundle", REFERENCE / "benchmark"
OUT, DATA = ("--out", "."), ("--data", "sample")
ARGUMENTS = {
    **dict.fromkeys(("run-all", *STAGES, "compare", "ablate"), (*DATA, *OUT)),
    "export": OUT,
    "data": (*DATA, *OUT),
    "report": (BENCHMARK, BENCHMARK, BENCHMARK, "--figure", "photo.png"),
    "verify": (BUNDLE,),
    "predict": (BUNDLE, "photo.png"),
    "doctor": (BUNDLE,),
    "gate": ("report.json", "report.json"),
    "export-c": (BUNDLE, *OUT),
}
FORCED = ("run-all", *STAGES, "compare", "ablate")


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_no_command_touches_a_folder_full_of_foreign_files(command, monkeypatch, tmp_path):
    for name in {*RUN_NAMES, *STUDY_NAMES, *REPORT_NAMES, *OTHER_NAMES}:
        put_foreign(tmp_path / name)
    before = content(tmp_path)
    monkeypatch.chdir(tmp_path)
    kdedge(command, *ARGUMENTS[command])
    assert content(tmp_path) == before
    if command in FORCED:
        assert kdedge(command, *ARGUMENTS[command], "--force").exit_code == 2
        assert content(tmp_path) == before


def test_the_page_of_a_data_set_replaces_only_another_one(folder_data, tmp_path):
    command = "data", "--data", folder_data, "--image-size", 16, "--out", tmp_path
    put_foreign(tmp_path / "data.html")
    before = content(tmp_path)
    result = kdedge(*command)
    assert result.exit_code == 2
    assert f"{tmp_path / 'data.html'} was not written by kdedge" in " ".join(result.stderr.split())
    assert content(tmp_path) == before
    (tmp_path / "data.html").unlink()
    assert kdedge(*command).exit_code == 0
    assert kdedge(*command).exit_code == 0


@pytest.mark.parametrize(
    "name",
    [*STUDY_NAMES, *(f"e2/seed0/kd/{name}" for name in ("distill", "teacher", "config.json", "test/quantize"))],
)
def test_a_study_refuses_foreign_files_under_its_names(name, tiny_options, tmp_path):
    put_foreign(tmp_path / name)
    before = content(tmp_path)
    runtime = ("--device", "cpu", "--threads", 1, "--precision", "fp32")
    result = kdedge(
        "compare", *tiny_options[:2], *runtime, "--methods", "kd", "--epochs", "2", "--test", "--out", tmp_path
    )
    assert result.exit_code == 2
    assert f"{tmp_path / name} was not written by kdedge" in " ".join(result.stderr.split())
    assert content(tmp_path).items() - {(Path(".lock"), b"")} == before.items()
    assert "running" not in result.stderr


@pytest.mark.parametrize("name", REPORT_NAMES)
def test_the_benchmark_of_a_bundle_refuses_foreign_files_under_its_names(name, tmp_path):
    put_foreign(tmp_path / name)
    before = content(tmp_path)
    result = kdedge("benchmark", REFERENCE / "bundle", "--data", "sample", "--out", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path / name} was not written by kdedge" in " ".join(result.stderr.split())
    assert content(tmp_path) == before


def test_the_benchmark_of_a_bundle_does_not_go_into_a_finished_stage(tmp_path):
    shutil.copytree(REFERENCE / "benchmark", tmp_path / "benchmark")
    before = content(tmp_path)
    result = kdedge("benchmark", REFERENCE / "bundle", "--data", "sample", "--out", tmp_path / "benchmark")
    assert result.exit_code == 2
    assert "is a finished stage, whose files are fixed" in " ".join(result.stderr.split())
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_figure_replaces_only_another_figure_of_kdedge(kind, tmp_path):
    file = tmp_path / f"photo.{kind}"
    file.write_bytes(b"mine")
    shutil.copy(REFERENCE / "benchmark" / "report.json", tmp_path / "again.json")
    command = ["report", REFERENCE / "benchmark", tmp_path / "again.json", "--figure", file]
    result = kdedge(*command)
    assert result.exit_code == 2
    assert "give another --figure" in result.stderr
    assert file.read_bytes() == b"mine"
    file.unlink()
    assert kdedge(*command).exit_code == 0
    assert kdedge(*command).exit_code == 0


def make(text="result", name="first"):
    def run(config, inputs, out_dir):
        (out_dir / "result.txt").write_text(text)
        return {}

    return StageSpec(name, (), run, lambda config: {"text": text}, lambda config: {})


def test_what_a_user_put_into_the_folder_of_a_stage_survives_its_making_again(tmp_path):
    run_stage(make(), None, tmp_path)
    folder = tmp_path / "first"
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / ".gitignore").write_text("*")
    assert run_stage(make(), None, tmp_path) is False
    assert run_stage(make("other"), None, tmp_path) is True
    assert (folder / "result.txt").read_text() == "other"
    assert (folder / "notes" / "mine.txt").read_text() == "mine"
    assert (folder / ".gitignore").read_text() == "*"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]


def test_a_file_of_the_user_with_the_name_of_a_new_result_is_kept_next_to_it(tmp_path):
    run_stage(make(), None, tmp_path)
    (tmp_path / "first" / "more.txt").write_text("mine")

    def run(config, inputs, out_dir):
        (out_dir / "more.txt").write_text("ours")
        return {}

    run_stage(StageSpec("first", (), run, lambda config: {}, lambda config: {}), None, tmp_path)
    assert content(tmp_path / "first")[Path("more.txt")] == b"ours"
    assert content(tmp_path / "first")[Path("more.txt.old")] == b"mine"


def test_empty_folders_and_links_to_finished_stages_are_replaced(tmp_path):
    (tmp_path / "run" / "first").mkdir(parents=True)
    (tmp_path / "run" / ".first.partial").mkdir()
    (tmp_path / "run" / ".first.old").mkdir()
    run_stage(make(), None, tmp_path / "run")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "first").symlink_to(tmp_path / "run" / "first")
    run_stage(make("other"), None, tmp_path / "linked")
    assert (tmp_path / "run" / "first" / "result.txt").read_text() == "result"
    assert (tmp_path / "linked" / "first" / "result.txt").read_text() == "other"
    assert [path.name for path in (tmp_path / "linked").iterdir()] == ["first"]


def test_leftovers_of_killed_commands_are_cleaned_up_and_nothing_else(tmp_path):
    run_stage(make(), None, tmp_path)
    shutil.copytree(tmp_path / "first", tmp_path / ".first.old")  # killed before the earlier result was deleted
    (tmp_path / ".second.partial").mkdir()  # killed in its work, of which nothing can be resumed
    (tmp_path / ".second.partial" / ".wanted.json").write_text("{")
    (tmp_path / ".second.partial" / "half.txt").write_text("half")
    (tmp_path / ".third.partial").mkdir()  # there is a checkpoint to resume from
    (tmp_path / ".third.partial" / ".wanted.json").write_text("{}")
    (tmp_path / ".third.partial" / ".checkpoint.pt").write_text("")
    put_foreign(tmp_path / ".fourth.partial")
    put_foreign(tmp_path / ".fourth.old")
    foreign = content(tmp_path / ".fourth.partial"), content(tmp_path / ".fourth.old")
    clean_up(tmp_path, ("first", "second", "third", "fourth"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"first", ".third.partial", ".fourth.partial", ".fourth.old"}
    assert (content(tmp_path / ".fourth.partial"), content(tmp_path / ".fourth.old")) == foreign


def test_a_killed_deletion_is_finished_by_the_next_command(tmp_path, monkeypatch):
    run_stage(make(), None, tmp_path)
    unlink = Path.unlink

    def killed_at_the_manifest(path, missing_ok=False):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_at_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            run_stage(make("other"), None, tmp_path)
    assert [path.name for path in (tmp_path / ".first.old").iterdir()] == ["manifest.json"]
    clean_up(tmp_path, ("first",))
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert (tmp_path / "first" / "result.txt").read_text() == "other"


def test_the_check_of_a_command_runs_before_anything_is_created(tmp_path):
    def refuse():
        raise InputError("no")

    with pytest.raises(InputError, match="no"), lock_run(tmp_path / "run", refuse):
        pass
    assert not (tmp_path / "run").exists()
    with lock_run(tmp_path / "run"), pytest.raises(InputError, match="in use"), lock_run(tmp_path / "run", refuse):
        pass


def test_a_manifest_of_another_stage_is_no_reason_to_replace_a_folder(tmp_path):
    shutil.copytree(REFERENCE / "bundle", tmp_path / "teacher")
    result = kdedge("teacher", "--data", "sample", "--out", tmp_path)
    assert "has no manifest.json of the stage teacher" in " ".join(result.stderr.split())
    assert load_manifest(tmp_path / "teacher")["stage"] == "bundle"
    assert json.loads((tmp_path / "teacher" / "report.json").read_text())

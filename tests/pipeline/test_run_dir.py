import dataclasses
import errno
import json
import mmap
import os

import pytest

from kdedge.errors import InputError, StageError
from kdedge.files import file_sha256
from kdedge.manifest import load_manifest
from kdedge.pipeline import peak_memory, unfinished
from kdedge.pipeline import run_dir as artifacts
from kdedge.pipeline.run_dir import StageSpec, lock_run, run_stage


class Stage:
    """A stage that writes one file and counts its runs."""

    def __init__(self, name="first", reads=(), key=None, text="result"):
        self.runs, self.text, self.settings = 0, text, key or {"runtime": {"threads": 1}, "epochs": 3}
        self.spec = StageSpec(name, reads, self.run, lambda config: self.settings, lambda config: {"train": "abc"})

    def run(self, config, inputs, out_dir):
        self.runs += 1
        (out_dir / "result.txt").write_text(self.text)
        return {"runs": self.runs}


def test_a_finished_stage_is_skipped_until_something_changes(tmp_path):
    stage = Stage()
    assert run_stage(stage.spec, None, tmp_path) is True
    assert run_stage(stage.spec, None, tmp_path) is False
    assert run_stage(stage.spec, None, tmp_path, force=True) is True
    stage.settings = {**stage.settings, "epochs": 4}
    assert run_stage(stage.spec, None, tmp_path) is True
    assert stage.runs == 3


def test_a_hidden_folder_in_a_stage_is_left_alone(tmp_path):
    stage = Stage()
    run_stage(stage.spec, None, tmp_path)
    (tmp_path / "first" / ".ipynb_checkpoints").mkdir()
    assert run_stage(stage.spec, None, tmp_path) is False
    assert (tmp_path / "first" / ".ipynb_checkpoints").is_dir()


def test_the_log_says_what_forced_a_rerun(tmp_path, capsys):
    stage = Stage()
    run_stage(stage.spec, None, tmp_path)
    stage.settings = {**stage.settings, "epochs": 4}
    run_stage(stage.spec, None, tmp_path)
    assert "changed: config epochs" in capsys.readouterr().err


def test_the_log_says_what_a_stage_does(tmp_path, capsys):
    spec = dataclasses.replace(Stage().spec, work="do the work")
    run_stage(spec, None, tmp_path)
    run_stage(spec, None, tmp_path, force=True)
    lines = capsys.readouterr().err.splitlines()
    assert "first: running: do the work" in lines
    assert "first: running (--force was given): do the work" in lines


def test_an_altered_or_missing_output_is_made_again(tmp_path):
    stage = Stage()
    run_stage(stage.spec, None, tmp_path)
    output = tmp_path / "first" / "result.txt"
    output.write_text("altered")
    assert run_stage(stage.spec, None, tmp_path) is True
    output.unlink()
    assert run_stage(stage.spec, None, tmp_path) is True
    assert output.read_text() == "result"


def test_a_changed_input_reruns_what_follows(tmp_path):
    first, second = Stage(), Stage("second", ("first",))
    run_stage(first.spec, None, tmp_path)
    run_stage(second.spec, None, tmp_path)
    first.text = "other"
    run_stage(first.spec, None, tmp_path, force=True)
    assert run_stage(second.spec, None, tmp_path) is True


def test_an_altered_input_is_refused_with_the_command_that_makes_it_again(tmp_path):
    first, second = Stage(), Stage("second", ("first",))
    run_stage(first.spec, None, tmp_path)
    (tmp_path / "first" / "result.txt").write_text("altered")
    with pytest.raises(InputError, match="was altered since stage first wrote it") as caught:
        run_stage(second.spec, None, tmp_path)
    assert f"kdedge first --out {tmp_path}" in caught.value.hint


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no finished stage"):
        run_stage(Stage("second", ("first",)).spec, None, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "config": []}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError):
        load_manifest(tmp_path)


def test_a_failed_stage_leaves_the_old_result(tmp_path):
    stage = Stage()
    run_stage(stage.spec, None, tmp_path)

    def fail(config, inputs, out_dir):
        (out_dir / "result.txt").write_text("half")
        raise StageError("it broke")

    broken = StageSpec("first", (), fail, stage.spec.fingerprint, stage.spec.data)
    with pytest.raises(StageError, match="stage first: it broke"):
        run_stage(broken, None, tmp_path, force=True)
    assert (tmp_path / "first" / "result.txt").read_text() == "result"


def test_a_full_disk_is_one_clear_error(tmp_path):
    def fail(config, inputs, out_dir):
        raise OSError(errno.ENOSPC, "No space left on device", str(out_dir / "weights"))

    with pytest.raises(StageError, match="No space left on device") as caught:
        run_stage(StageSpec("first", (), fail, lambda c: {}, lambda c: {}), None, tmp_path)
    assert caught.value.exit_code == 1


def test_a_crash_between_the_two_renames_is_undone(tmp_path):
    stage = Stage()
    run_stage(stage.spec, None, tmp_path)
    (tmp_path / "first").rename(tmp_path / ".first.old")
    assert run_stage(stage.spec, None, tmp_path) is False
    assert (tmp_path / "first" / "result.txt").exists()


def interrupted(stage, run_dir, *writes):
    def stop(config, inputs, out_dir):
        for name in writes:
            (out_dir / name).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(StageSpec("first", (), stop, stage.spec.fingerprint, stage.spec.data), None, run_dir)


def test_unfinished_work_is_kept_for_the_same_configuration(tmp_path):
    stage = Stage()
    interrupted(stage, tmp_path, ".checkpoint")
    seen = []

    def go_on(config, inputs, out_dir):
        seen.append((out_dir / ".checkpoint").exists())
        return {}

    run_stage(StageSpec("first", (), go_on, stage.spec.fingerprint, stage.spec.data), None, tmp_path)
    assert seen == [True]
    # A working file is no output, and goes when the stage is complete.
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"manifest.json"}


def test_a_stage_killed_after_its_work_but_before_its_manifest_keeps_the_work(tmp_path, monkeypatch):
    stage = Stage()
    write = artifacts.write_json

    def killed_at_the_manifest(path, value):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_json", killed_at_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage.spec, None, tmp_path)
    assert (tmp_path / ".first.partial" / ".wanted.json").exists()
    assert (tmp_path / ".first.partial" / "result.txt").exists()
    assert run_stage(stage.spec, None, tmp_path) is True


def test_the_manifest_names_the_commits_of_all_attempts_and_other_packages_are_warned_of(tmp_path, monkeypatch, capsys):
    stage = Stage()
    for commit, torch in (("aaa", "2.9.0"), ("bbb", "2.9.0"), ("bbb", "2.9.1")):
        monkeypatch.setattr(unfinished, "versions", lambda torch=torch: {"torch": torch, "numpy": "2.3"})
        monkeypatch.setattr(unfinished, "git_commit", lambda commit=commit: commit)
        interrupted(stage, tmp_path, ".checkpoint")
    printed = capsys.readouterr().err
    assert "work begun with torch 2.9.0 continues with 2.9.1: the result may differ" in " ".join(printed.split())
    assert printed.count("work begun with") == 1
    run_stage(stage.spec, None, tmp_path)
    manifest = load_manifest(tmp_path / "first")
    assert (manifest["commit"], manifest["versions"]["torch"]) == ("aaa, bbb", "2.9.1")
    assert not (tmp_path / "first" / ".attempts.json").exists()


@pytest.mark.parametrize("left", [(), ("result.txt",)])  # an output is no work: the next attempt writes it again
def test_an_attempt_that_left_no_work_is_not_named(tmp_path, monkeypatch, left):
    stage = Stage()
    for commit, writes in (("aaa", left), ("bbb", (".checkpoint",)), ("ccc", left)):
        monkeypatch.setattr(unfinished, "git_commit", lambda commit=commit: commit)
        interrupted(stage, tmp_path, *writes)
    monkeypatch.setattr(unfinished, "git_commit", lambda: "ddd")
    run_stage(stage.spec, None, tmp_path)
    assert load_manifest(tmp_path / "first")["commit"] == "bbb, ddd"


@pytest.mark.parametrize("changed", [{"epochs": 9}, {"runtime": {"seed": 1}}, {"runtime": {"seed": 1, "threads": 2}}])
def test_unfinished_work_of_another_configuration_is_dropped(tmp_path, changed):
    stage = Stage()
    stage.settings = {**stage.settings, "runtime": {"seed": 0, "threads": 1}}
    interrupted(stage, tmp_path, ".checkpoint")
    stage.settings = {**stage.settings, **changed}
    run_stage(stage.spec, None, tmp_path)
    assert not (tmp_path / "first" / ".checkpoint").exists()


def test_going_on_with_another_thread_count_is_refused(tmp_path):
    stage = Stage()
    interrupted(stage, tmp_path, ".checkpoint")
    stage.settings = {**stage.settings, "runtime": {"threads": 2}}
    with pytest.raises(InputError, match="unfinished work made with another threads") as refused:
        run_stage(stage.spec, None, tmp_path)
    # No configuration is recorded before the first stage is finished.
    assert f"over, with its other options: `kdedge first --out {tmp_path} --force`" in refused.value.hint
    assert run_stage(stage.spec, None, tmp_path, force=True) is True


def test_a_run_directory_is_locked(tmp_path):
    with lock_run(tmp_path), pytest.raises(InputError, match="in use by another kdedge"), lock_run(tmp_path):
        pass
    with lock_run(tmp_path):
        pass


def test_an_unwritable_run_directory_is_an_input_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match="cannot write to"), lock_run(blocker / "run"):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_run_directory_that_the_system_refuses_is_one_clear_error(tmp_path, monkeypatch, number):
    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(artifacts.Path, "mkdir", refuse)
    with pytest.raises(InputError, match=f"cannot write to .*run: {os.strerror(number)}"), lock_run(tmp_path / "run"):
        pass


def test_the_manifest_holds_what_decided_the_result(tmp_path):
    run_stage(Stage().spec, None, tmp_path)
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    assert manifest["inputs"] == {"data/train": "abc"}
    assert manifest["outputs"] == {"result.txt": file_sha256(tmp_path / "first" / "result.txt")}
    assert {"torch", "onnx", "onnxruntime", "numpy", "python"} <= manifest["versions"].keys()
    assert manifest["wall_s"] >= 0
    assert 10 < manifest["peak_rss_mb"] < 100_000  # a Python process with pytest, in millions of bytes


def versioned(stage, version=1):
    return StageSpec(
        "first", (), stage.run, stage.spec.fingerprint, stage.spec.data, packages=("torch",), version=version
    )


def code(monkeypatch, versions):
    """Let attempts and comparisons see these package versions."""
    for module in (artifacts, unfinished):
        monkeypatch.setattr(module, "versions", lambda: versions)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (("2.14", 1), "up to date, skipped (made with torch 2.13, now 2.14; --refresh makes it again)"),
        (("2.13", 2), "made with version of stage first 1, now 2; --refresh makes it again"),
        (("2.13", 1), ""),
    ],
)
def test_a_result_of_other_versions_stays_until_it_is_refreshed(now, said, tmp_path, monkeypatch, capsys):
    stage, (torch, version) = Stage(), now
    code(monkeypatch, {"torch": "2.13", "numpy": "2.3"})
    run_stage(versioned(stage), None, tmp_path)
    code(monkeypatch, {"torch": torch, "numpy": "9"})
    assert run_stage(versioned(stage, version), None, tmp_path) is False
    log = " ".join(capsys.readouterr().err.split())
    assert said in log
    assert ("--refresh" in log) == bool(said)
    assert run_stage(versioned(stage, version), None, tmp_path, refresh=True) is bool(said)
    assert run_stage(versioned(stage, version), None, tmp_path, refresh=True) is False


def test_a_manifest_of_before_there_were_versions_is_up_to_date(tmp_path, monkeypatch, capsys):
    stage = Stage()
    run_stage(versioned(stage), None, tmp_path)
    path = tmp_path / "first" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["version"]
    path.write_text(json.dumps(manifest))
    code(monkeypatch, {"torch": "99"})
    assert run_stage(versioned(stage, 2), None, tmp_path, refresh=True) is False
    assert "--refresh" not in capsys.readouterr().err


def test_unfinished_work_of_another_version_of_a_stage_is_dropped(tmp_path, capsys):
    stage = Stage()
    interrupted(stage, tmp_path, ".checkpoint")
    run_stage(versioned(stage, 2), None, tmp_path)
    assert "starting over: changed since the interrupted run: version" in capsys.readouterr().err


@pytest.mark.parametrize("note", [".attempts.json", ".wanted.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", '"text"', '{"config": 1}', "[[1, 2, 3]]", "\ud800"])
def test_a_damaged_note_of_unfinished_work_is_ignored_with_a_warning(note, content, tmp_path, capsys):
    stage = Stage()
    interrupted(stage, tmp_path, ".checkpoint")
    (tmp_path / ".first.partial" / note).write_text(content, errors="surrogatepass")
    assert run_stage(stage.spec, None, tmp_path) is True
    if (note, content) != (".attempts.json", "[]"):  # as without attempts
        assert f"{note} is" in " ".join(capsys.readouterr().err.split())


def test_the_peak_memory_is_that_of_the_stage(tmp_path, monkeypatch):
    def large(config, inputs, out_dir):
        with mmap.mmap(-1, 320_000_000) as memory:  # the allocator may keep what is freed, a mapping goes at once
            for start in range(0, len(memory), 4096):
                memory[start] = 1
        return {}

    def peak_mb(run, name):
        run_stage(StageSpec(name, (), run, lambda config: {}, lambda config: {}), None, tmp_path)
        return load_manifest(tmp_path / name)["peak_rss_mb"]

    first, second = peak_mb(large, "first"), peak_mb(Stage().run, "second")
    assert first > 320
    assert second is None or second < first - 200
    monkeypatch.setattr(artifacts, "reset_peak", lambda: peak_memory._largest_rss_kb() + 1)
    assert peak_mb(Stage().run, "third") is None, "where the system cannot forget an earlier peak"

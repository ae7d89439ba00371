"""`kdedge compare` on a tiny data set: cells, tables, resume, what is refused."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from studies import kdedge, read, small, without_teacher_options

from kdedge.files import file_sha256
from kdedge.pipeline.stages import distill as stage
from kdedge.pipeline.study import launch


def test_a_comparison_has_a_run_directory_per_cell_and_a_row_in_the_table(study, compared):
    out, _ = study
    rows = read(out / "evaluation_results.csv")
    keys = [(row["method"], row["seed"]) for row in rows]
    assert keys == [(method, seed) for seed in "01" for method in ("ce", "kd", "selective")]
    for row in rows:
        cell = out / "e2" / f"seed{row['seed']}" / row["method"]
        manifest = json.loads((cell / "distill" / "manifest.json").read_text())
        assert manifest["config"]["distill"]["method"] == row["method"]
        assert manifest["config"]["runtime"]["seed"] == int(row["seed"])
        assert float(row["val_top1_pct"]) == manifest["facts"]["val_top1_pct"]
        assert (cell / "teacher").resolve() == (out / "teacher").resolve()
        made = (row["train_size"], row["recipe"], row["precision"], row["threads"])
        assert made == (str(manifest["facts"]["train_images"]), "kdedge", "fp32", "1") == ("96", *made[1:])
        assert row["beta_halvings"] == ("0" if row["method"] == "selective" else "")  # two epochs are too few for one
        extra = int(row["trained_params"]) - int(row["params"])
        assert (extra > 0) == (row["method"] == "selective") == (int(row["hint_map_bytes"]) > 0)
        teacher = manifest["facts"]["teacher_val_top1_pct"]
        assert float(row["teacher_gap_pp"]) == pytest.approx(teacher - float(row["val_top1_pct"]), abs=1e-3)
        epochs = [float(epoch["seconds"]) for epoch in read(cell / "distill" / f"training_log_{row['method']}.csv")]
        assert float(row["median_epoch_s"]) == pytest.approx(sum(epochs) / 2)  # of two


def test_the_page_says_what_the_numbers_are(study, compared, folder_data):
    page = (study[0] / "comparison.md").read_text()
    assert compared.stdout.strip() == page.strip()
    assert page.startswith("# Comparison of methods\n")
    named = f"folder:{folder_data.name}"
    texts = (
        "6 of 6 cells",
        "are in `config.json`",
        "Commit: ",
        "Hardware: ",
        "threads: 1",
        "2 seeds",
        f"Training data: all of {named}; ",
    )
    for text in (*texts, f"Command: `kdedge compare --data {named} ", " --out compare --epochs 2 "):
        assert text in page
    assert str(folder_data.parent) not in page
    assert "another split" not in page  # the split is the same for every seed
    assert "Teacher: tiny_resnet, training set of 96, " in page
    assert "The students have a training set" not in page
    scanned = read(study[0] / "block_variances.csv")
    chosen = [
        row["block"] for row in scanned if row["method"] == "selective" and row["seed"] == "0" and row["chosen"] == "1"
    ]
    assert len(chosen) == 3


def test_the_same_command_trains_nothing_and_gives_the_same_table(copied):
    out, command = copied
    before = (out / "evaluation_results.csv").read_text()
    result = kdedge(*command, "--json")
    assert "6 of 6 cells are finished" in result.stderr
    assert "running" not in result.stderr
    assert (out / "evaluation_results.csv").read_text() == before
    printed = json.loads(result.stdout)
    assert len(printed["rows"]) == 6
    assert {entry["method"] for entry in printed["summary"]} == {"ce", "kd", "selective"}


def test_a_later_command_adds_to_the_table_what_was_trained_alike(copied):
    out, command = copied
    before = (out / "evaluation_results.csv").read_text()
    command = list(command)
    command[command.index("--seeds") + 1] = "1"
    command[command.index("--methods") + 1] = "kd"
    assert "6 of 6 cells are finished" in kdedge(*command).stderr
    assert (out / "evaluation_results.csv").read_text() == before


def test_cells_are_kept_under_another_option_that_they_have_no_use_for(study, compared, tmp_path):
    kdedge(*small(study, tmp_path, methods="ce,kd"))
    result = kdedge(*small(study, tmp_path, "--beta", "25", "--hint-loss", "raw", methods="ce,kd"))
    assert "2 of 2 cells are finished" in result.stderr
    assert "2 of 2 cells" in result.stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--temperature", "2"], "--temperature"),
        (["--recipe", "source"], "--recipe"),
        (["--train-size", "60"], "--train-size"),
    ],
)
def test_finished_cells_are_not_replaced_by_cells_of_other_options(options, named, study, compared):
    out, command = study
    before = (out / "e2" / "seed0" / "kd" / "distill" / "manifest.json").read_text()
    recorded = (out / "config.json").read_text()
    result = kdedge(*command, *options, code=2)
    assert f"6 finished cells in {out} would be replaced: made with another {named}" in result.stderr
    assert "-> use another --out, or --force to replace them" in result.stderr
    assert "running" not in result.stderr
    assert (out / "e2" / "seed0" / "kd" / "distill" / "manifest.json").read_text() == before
    assert (out / "config.json").read_text() == recorded


def test_the_teacher_of_finished_cells_is_not_replaced(study, compared):
    result = kdedge(*study[1], "--teacher-epochs", "1", code=2)
    assert "6 finished cells in" in result.stderr
    assert "made with a teacher of another --teacher-epochs" in result.stderr


def test_force_replaces_finished_cells_and_the_others_leave_the_tables(study, compared, tmp_path):
    kdedge(*small(study, tmp_path, methods="ce,kd"))
    command = small(study, tmp_path, "--temperature", "2", "--force")
    page = kdedge(*command)
    assert "distill: running" in page.stderr
    assert f"{tmp_path / 'e2' / 'seed0' / 'ce'} is left out of the tables: it was made with another --temperature" in (
        page.stderr
    )
    assert "1 of 1 cells" in page.stdout
    # What is replaced is finished, so a study that was interrupted goes on.
    assert "1 of 1 cells are finished" in kdedge(*command).stderr


def test_a_teacher_from_elsewhere_is_not_replaced_by_a_new_one(study, compared, tmp_path):
    kdedge(*small(study, tmp_path))
    command = [tmp_path if part == study[0] else part for part in study[1]]
    command[command.index("--methods") + 1] = "kd"
    command[command.index("--seeds") + 1] = "1"
    result = kdedge(*command, code=2)
    assert f"the teacher of 1 finished cell in {tmp_path} is in another directory" in result.stderr
    assert "name it with --teacher-dir" in result.stderr
    assert "running" not in result.stderr


def test_the_time_left_is_of_what_is_to_be_trained(study, compared, tmp_path, monkeypatch):
    kdedge(*small(study, tmp_path, methods="kd"))
    clock = itertools.count(step=100.0)
    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    log = kdedge(*small(study, tmp_path, methods="ce,kd,selective")).stderr
    assert "1 of 3 cells are finished" in log
    assert "cell 1 of 2: ce, 2 epochs, seed 0\n" in log
    assert "cell 2 of 2: selective, 2 epochs, seed 0; 1 min 40 s left" in log


def test_an_interruption_leaves_what_is_finished_in_the_tables(study, compared, tmp_path, monkeypatch):
    kdedge(*small(study, tmp_path, methods="kd"))
    monkeypatch.setattr(stage, "run", refuse)
    kdedge(*small(study, tmp_path, methods="ce"), code=1)
    assert [row["method"] for row in read(tmp_path / "evaluation_results.csv")] == ["kd"]
    monkeypatch.undo()
    # The control, which a next command does not ask for, was begun.
    note = "Interrupted or diverged, so not in these tables: e2/seed0/ce."
    assert note in kdedge(*small(study, tmp_path, methods="kd")).stdout
    assert "not in these tables" not in kdedge(*small(study, tmp_path, methods="ce")).stdout


def test_a_finished_cell_keeps_the_options_that_its_user_gave_it(study, compared, tmp_path):
    kdedge(*small(study, tmp_path))
    path = tmp_path / "e2" / "seed0" / "kd" / "config.json"
    config = json.loads(path.read_text())
    config["quantize"]["target"] = "arm64"
    path.write_text(json.dumps(config))
    kdedge(*small(study, tmp_path))
    assert json.loads(path.read_text()) == config


def test_a_damaged_cell_is_trained_again(study, compared, tmp_path):
    kdedge(*small(study, tmp_path))
    student = tmp_path / "e2" / "seed0" / "kd" / "distill" / "student.json"
    before = student.read_text()
    student.write_text("{}")
    assert "distill: running (output student.json was altered)" in kdedge(*small(study, tmp_path)).stderr
    assert student.read_text() == before


def test_a_damaged_teacher_is_not_trained_again_for_cells_that_would_be_of_the_old_one(copied):
    out, command = copied
    (out / "teacher" / "metrics.csv").write_text("other")
    result = kdedge(*command, code=2)
    assert f"the teacher of 6 finished cells in {out}: metrics.csv was altered since it was trained" in result.stderr
    assert "running" not in result.stderr


def test_cells_of_another_teacher_are_kept(study, compared, tmp_path):
    kdedge(*small(study, tmp_path))
    other = tmp_path / "other" / "teacher"
    shutil.copytree(study[0] / "teacher", other)
    # Not the weights alone decide: a cell reads all files of its teacher.
    (other / "metrics.csv").write_text("other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["outputs"]["metrics.csv"] = file_sha256(other / "metrics.csv")
    (other / "manifest.json").write_text(json.dumps(manifest))
    command = small(study, tmp_path)
    command[command.index("--teacher-dir") + 1] = other
    result = kdedge(*command, code=2)
    assert f"1 finished cell in {tmp_path} would be replaced: made with another teacher" in result.stderr
    command[command.index("--methods") + 1] = "ce"
    result = kdedge(*command)
    assert result.stderr.count("distill: running") == 1  # kd was not asked for
    assert "is left out of the tables: it was made with another teacher" in result.stderr


def test_a_damaged_cell_that_was_not_asked_for_does_not_stop_the_study(study, compared, tmp_path):
    kdedge(*small(study, tmp_path, methods="ce,kd"))
    kd, ce = (tmp_path / "e2" / "seed0" / name / "distill" for name in ("kd", "ce"))
    (kd / "manifest.json").write_text("{")
    (ce / "student.json").unlink()
    result = kdedge(*small(study, tmp_path, methods="selective"))
    assert f"warning: {kd.parent} is left out of the tables: {kd / 'manifest.json'} is damaged" in result.stderr
    assert f"warning: {ce.parent} is left out of the tables: student.json is missing" in result.stderr
    assert result.stderr.count("distill: running") == 1


def test_an_altered_teacher_is_refused_before_the_first_cell(study, compared, tmp_path):
    altered = tmp_path / "altered" / "teacher"
    shutil.copytree(study[0] / "teacher", altered)
    (altered / "teacher.safetensors").write_bytes(b"other")
    command = small(study, tmp_path / "out")
    command[command.index("--teacher-dir") + 1] = altered
    result = kdedge(*command, code=2)
    assert f"--teacher-dir {altered}: teacher.safetensors was altered since it was trained" in result.stderr
    assert "cell 1" not in result.stderr


def test_a_finished_teacher_is_taken_and_not_copied(study, compared, tmp_path):
    out, command = study
    command = [tmp_path if part == out else part for part in without_teacher_options(command)]
    command[command.index("--seeds") + 1] = "0"
    command[command.index("--methods") + 1] = "kd"
    page = kdedge(*command, "--teacher-dir", out / "teacher").stdout
    assert "> **Alarm:** no ce of 2 epochs is finished to compare with." in page
    assert "one seed" not in page
    cell = "e2/seed0/kd/distill/student.safetensors"
    assert (tmp_path / cell).read_bytes() == (out / cell).read_bytes()
    assert not (tmp_path / "teacher").exists()
    other = [tmp_path / "other" if part == tmp_path else part for part in command]
    page = kdedge(*other, "--val-fraction", "0.4", "--teacher-dir", out / "teacher").stdout
    assert "The teacher has another split or other data" in page
    assert "The students have a training set of 72, their teacher one of 96." in page


def test_a_cell_that_diverges_is_recorded_and_the_study_goes_on(study, compared, tmp_path, monkeypatch):
    from kdedge.errors import DivergenceError

    out, command = study
    honest = stage.run

    def run(config, inputs, out_dir):
        if config.distill.method == "kd":
            raise DivergenceError("the loss became nan")
        return honest(config, inputs, out_dir)

    monkeypatch.setattr(stage, "run", run)
    command = [tmp_path if part == out else part for part in without_teacher_options(command)]
    command[command.index("--seeds") + 1] = "0"
    result = kdedge(*command, "--teacher-dir", out / "teacher")
    status = {row["method"]: row["status"] for row in read(tmp_path / "evaluation_results.csv")}
    assert status == {"ce": "done", "kd": "diverged", "selective": "done"}
    assert "| kd | diverged |" in result.stdout
    assert "warning: kd, 2 epochs, seed 0: stage distill: the loss became nan" in result.stderr
    monkeypatch.undo()
    again = kdedge(*command, "--teacher-dir", out / "teacher")
    assert "running" not in again.stderr
    assert "| kd | diverged |" in again.stdout
    kdedge("distill", "--out", tmp_path / "e2" / "seed0" / "kd")
    assert "| kd | diverged |" not in kdedge(*command, "--teacher-dir", out / "teacher").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "ce,selectiv"], "unknown name 'selectiv' (did you mean 'selective'?)"),
        (["--epochs", "0"], "--epochs '0': '0' is not a whole number from 1"),
        (["--seeds", "a"], "--seeds 'a': 'a' is not a whole number from 0"),
        (["--methods", "static", "--epochs", "40,5"], "5 hint-only epochs (--hint-epochs) leave none of 5 (--epochs)"),
        (["--hint-epochs", "9", "--epochs", "8,9"], "9 hint-only epochs (--hint-epochs) leave none of 8 (--epochs)"),
        (["--beta", "0"], "--methods selective uses hints, and --beta 0 disables them: use --methods kd"),
        (["--method", "kd"], "--method"),
        (["--shard", "3/2"], "--shard '3/2' is not K/N with K from 1 to N"),
        (["--shard", "2/3", "--test"], "--test measures every student after all training"),
        (["--launcher", "slrum"], "unknown name 'slrum' (did you mean 'slurm'?)"),
        (["--slurm", "partition=gpu"], "--slurm has no effect without --launcher slurm"),
        (["--launcher", "slurm", "--slurm", "gpu"], "--slurm 'gpu' is not KEY=VALUE"),
        (["--data", "folder:/no --method here"], "/no --method here"),
        (["--teacher-weights", "none", "--teacher-epochs", "0"], "leaves the teacher random: there is nothing to"),
        (["--teacher", "regnet_y_400mf", "--teacher-stem", "auto"], "regnet_y_400mf has no blocks"),
        (
            ["--teacher", "shufflenet_v2_x0_5", "--teacher-stem", "auto"],
            "shufflenet_v2_x0_5 has no blocks whose maps hints could use\n"
            "  -> train without hints: `kdedge compare --methods ce,kd`, `kdedge ablate --method kd`; or use another",
        ),
    ],
)
def test_what_no_cell_can_do_is_refused_before_anything_is_trained(arguments, message, study, tmp_path):
    command = [tmp_path if part == study[0] else part for part in study[1]]
    result = kdedge(*command, *arguments, code=2)
    assert message in result.stderr
    assert "running" not in result.stderr


def test_a_teacher_directory_must_hold_a_teacher_and_excludes_options_of_its_training(study, compared, tmp_path):
    out, command = study
    command = [tmp_path if part == out else part for part in command]
    result = kdedge(*command, "--teacher-dir", out / "teacher", code=2)
    assert (
        "--teacher-dir names a finished teacher, which --teacher, --teacher-weights, --teacher-stem, "
        "--teacher-epochs, --teacher-batch-size, --teacher-lr would not change" in result.stderr
    )
    command = without_teacher_options(command)
    result = kdedge(*command, "--teacher-dir", "/does/not/exist", code=2)
    assert "/does/not/exist holds no finished stage" in result.stderr
    cell = out / "e2" / "seed0" / "ce"
    result = kdedge(*command, "--teacher-dir", cell / "distill", code=2)
    assert f"--teacher-dir {cell / 'distill'} is the stage distill, not a teacher" in result.stderr
    assert (
        "-> use a finished teacher, such as artifacts/run/teacher; `kdedge teacher --out artifacts/run` trains one"
        in result.stderr
    )
    assert not (tmp_path / "config.json").exists()


def test_a_finished_teacher_without_hint_blocks_is_refused_before_anything_is_trained(study, compared, tmp_path):
    out, command = study
    plain = tmp_path / "plain" / "teacher"
    shutil.copytree(out / "teacher", plain)
    manifest = json.loads((plain / "manifest.json").read_text())
    manifest["facts"]["arch"] = "shufflenet_v2_x0_5"
    (plain / "manifest.json").write_text(json.dumps(manifest))
    command = [tmp_path if part == out else part for part in without_teacher_options(command)]
    result = kdedge(*command, "--teacher-dir", plain, code=2)
    assert "shufflenet_v2_x0_5 has no blocks" in result.stderr
    assert "running" not in result.stderr


@pytest.mark.parametrize("links", [True, False])
def test_the_teacher_of_a_cell_can_be_given(study, compared, tmp_path, monkeypatch, links):
    out, command = study
    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    command = [tmp_path if part == out else part for part in without_teacher_options(command)]
    command[command.index("--seeds") + 1] = "0"
    command[command.index("--methods") + 1] = "kd"
    kdedge(*command, "--teacher-dir", out / "teacher")
    teacher = tmp_path / "e2" / "seed0" / "kd" / "teacher"
    assert teacher.is_symlink() == links
    for method in ("kd", "ce"):
        command[command.index("--methods") + 1] = method
        kdedge(*command, "--teacher-dir", teacher)
        weights = tmp_path / "e2" / "seed0" / method / "teacher" / "teacher.safetensors"
        assert weights.read_bytes() == (out / "teacher" / "teacher.safetensors").read_bytes()


def refuse(*_, **__):
    raise OSError("no links here")


def test_the_lengths_of_a_study_are_what_options_are_checked_against(study, compared, tmp_path):
    # More hint-only epochs than a run has by default, and fewer than those of this study.
    command = [tmp_path if part == study[0] else part for part in without_teacher_options(study[1])]
    result = kdedge(*command, "--hint-epochs", 30, "--epochs", 40, "--teacher-dir", "/does/not/exist", code=2)
    assert "holds no finished stage" in result.stderr


@pytest.mark.parametrize("options", [["--beta", 0], ["--hint-epochs", 30]])
def test_options_of_hints_are_refused_only_where_a_method_uses_hints(options, study, tmp_path):
    command = [tmp_path if part == study[0] else part for part in without_teacher_options(study[1])]
    result = kdedge(*command, "--methods", "ce,kd", *options, "--teacher-dir", "/does/not/exist", code=2)
    assert "holds no finished stage" in result.stderr

"""The distillation stage on a tiny data set: the same bits twice, after an interruption and with a warm cache."""

import dataclasses
import itertools
import json
import re
import shutil

import pytest
from interruption import interrupted_at

from kdedge.errors import InputError
from kdedge.pipeline.distill import trainer
from kdedge.pipeline.distill.dynamic import DynamicChoice
from kdedge.pipeline.distill.frozen_teacher import _logits_path
from kdedge.pipeline.distill.teacher_logits import LogitsFile
from kdedge.pipeline.stages import distill as stage
from kdedge.pipeline.stages import teacher
from kdedge.pipeline.training.log import read_log


def test_dynamic_gives_the_same_weights_twice_and_after_an_interruption(distill, monkeypatch):
    # Made up, so that the choice changes: every block is the least explained in turn.
    turns = itertools.count()

    def measured(evaluator):
        count = next(turns)
        return {pair.teacher_block: float((index - count) % 4) for index, pair in enumerate(evaluator._candidates)}

    monkeypatch.setattr(stage.StudentEvaluator, "unexplained", measured)
    settings = {"method": "dynamic", "rechoose_epochs": 1, "hint_blocks": 2}
    whole, facts = distill("whole", **settings)
    assert [entry["epoch"] for entry in facts["hint_choices"]] == [0, 1, 2, 3]
    assert len({tuple(entry["chosen"]) for entry in facts["hint_choices"]}) == 4

    turns = itertools.count()  # read by `measured`
    honest = DynamicChoice.update

    def interrupted(self, epoch, unexplained):
        if epoch == 2:
            raise KeyboardInterrupt
        honest(self, epoch, unexplained)

    monkeypatch.setattr(DynamicChoice, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill("broken", **settings)
    monkeypatch.setattr(DynamicChoice, "update", honest)
    resumed, resumed_facts = distill("broken", **settings)
    assert resumed == whole
    assert resumed_facts["hint_choices"] == facts["hint_choices"]
    assert resumed_facts["hint_pairs"] == facts["hint_pairs"]
    # Batches of 16; a map per stage at 8, 4, 2 and 1 pixels, float32: what the largest choice takes.
    maps = {f"layer{stage}.0": (8 << stage - 1) * (16 >> stage) ** 2 for stage in range(1, 5)}
    assert facts["hint_map_bytes"] == max(
        16 * 4 * sum(maps[name] for name in entry["chosen"]) for entry in facts["hint_choices"]
    )


def test_a_student_of_two_teachers_learns_from_the_mean_of_their_logits(config, teacher_dir, distill, tmp_path):
    alone, _ = distill("alone", method="kd")
    twice, _ = distill("twice", method="kd", more_teachers=str(teacher_dir))
    assert twice == alone, "the mean of a teacher and itself"
    other = tmp_path / "other"
    other.mkdir()
    weaker = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, epochs=1))
    teacher.run(weaker, {}, other)
    both, _ = distill("both", method="kd", more_teachers=str(other))
    assert both != alone


def test_the_mean_of_flips_needs_mirrored_images(distill):
    alone, facts = distill("alone", method="kd", flip=True)
    both, facts_of_both = distill("both", method="kd", flip=True, mean_of_flips=True)
    assert both != alone
    assert (facts["mean_of_flips"], facts_of_both["mean_of_flips"]) == (False, True)
    kept, _ = distill("kept", method="kd", flip=False)
    same, facts = distill("same", method="kd", flip=False, mean_of_flips=True)
    assert same == kept
    assert not facts["mean_of_flips"]


def test_what_is_no_finished_teacher_is_refused(config, tmp_path):
    wrong = dataclasses.replace(config, distill=dataclasses.replace(config.distill, more_teachers=str(tmp_path)))
    with pytest.raises(InputError, match="expected the folder of a finished teacher"):
        stage.check(wrong, tmp_path)


def test_an_interruption_after_a_halving_of_beta_changes_no_weight(distill, monkeypatch, tmp_path):
    honest, measured = stage.StudentEvaluator.measure, itertools.count()

    def stuck(evaluator):  # made up: the KD loss never improves after the first epoch
        return {**honest(evaluator), "val_kd": 1.0 + next(measured), "val_top1_pct": 0.0}

    monkeypatch.setattr(stage.StudentEvaluator, "measure", stuck)
    settings = {"method": "selective", "beta_patience": 1}
    whole, _ = distill("whole", **settings)
    betas = [row["beta"] for row in read_log(tmp_path / "whole" / "training_log_selective.csv")]
    assert betas == [2500, 2500, 1250, 625]

    measured = itertools.count()  # read by `stuck`
    monkeypatch.setattr(stage.StudentEvaluator, "measure", interrupted_at(3, stuck))
    with pytest.raises(KeyboardInterrupt):
        distill("broken", **settings)
    assert [row["beta"] for row in read_log(tmp_path / "broken" / "training_log_selective.csv")] == betas[:3]
    monkeypatch.setattr(stage.StudentEvaluator, "measure", stuck)
    assert distill("broken", **settings)[0] == whole
    assert [row["beta"] for row in read_log(tmp_path / "broken" / "training_log_selective.csv")] == betas


def test_features_are_judged_at_the_same_blocks_whatever_is_hinted_at(distill, tmp_path):
    first = {}
    for count in (1, 2):
        distill(f"hints-{count}", method="kd", epochs=1, hint_blocks=count)
        (row,) = read_log(tmp_path / f"hints-{count}" / "training_log_kd.csv")
        first[count] = row["val_hint"], row["cosine_similarity"]
    assert first[1] == first[2]


@pytest.mark.parametrize("method", ["kd", "selective"])
def test_a_second_run_takes_every_logit_from_the_cache_and_gives_the_same_weights(
    distill, capsys, monkeypatch, tmp_path, method
):
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    first, facts = distill("first", method=method)
    assert 300 < facts["logits_computed"] <= 384, "a few images have the same view in two of the four epochs"
    assert f"teacher logits: {facts['logits_computed']} computed" in capsys.readouterr().err
    again, facts = distill("again", method=method)
    assert facts["logits_computed"] == 0
    assert again == first
    monkeypatch.setenv("KDEDGE_CACHE", "/proc/no-such-folder")  # nothing can be kept there
    without, _ = distill("without", method=method)
    assert without == first


def test_another_seed_takes_every_logit_from_the_cache(config, teacher_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    settings = dataclasses.replace(config.distill, method="kd", epochs=2, batch_size=20)
    computed = []
    for seed in (3, 4):
        changed = dataclasses.replace(config.runtime, seed=seed)
        out = tmp_path / str(seed)
        out.mkdir()
        facts = stage.run(dataclasses.replace(config, distill=settings, runtime=changed), {"teacher": teacher_dir}, out)
        computed.append(facts["logits_computed"])
    # Each epoch leaves out 16 of the 96 images, of each seed others.
    assert computed == [2 * 96, 0]


def test_logits_that_were_computed_before_an_interruption_count(distill, monkeypatch, tmp_path):
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    honest = stage.StudentEvaluator.measure
    monkeypatch.setattr(stage.StudentEvaluator, "measure", interrupted_at(1, honest))
    with pytest.raises(KeyboardInterrupt):
        distill("broken", method="kd")
    monkeypatch.setattr(stage.StudentEvaluator, "measure", honest)
    _, facts = distill("broken", method="kd")
    counts = [row["logits_computed"] for row in read_log(tmp_path / "broken" / "training_log_kd.csv")]
    # The second epoch was trained twice: what its first attempt computed lay in the cache.
    assert [count > 0 for count in counts] == [True, False, True, True]
    assert facts["logits_computed"] == sum(counts)


def test_the_student_is_described_with_its_images(distill, tmp_path):
    distill("student", epochs=1)
    student = json.loads((tmp_path / "student" / "student.json").read_text())
    assert (student["image_size"], student["resize_mode"]) == (16, "squeeze")


def test_two_stems_of_the_same_weights_have_two_files_of_logits(config, teacher_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(teacher_dir, other)
    assert _logits_path(other, "data", 2, 32, config) == _logits_path(teacher_dir, "data", 2, 32, config)
    description = (other / "teacher.json").read_text()
    (other / "teacher.json").write_text(re.sub(r'"stem": "[^"]+"', '"stem": "other"', description))
    assert _logits_path(other, "data", 2, 32, config) != _logits_path(teacher_dir, "data", 2, 32, config)


def test_the_cache_is_closed_at_the_end_and_after_an_error(distill, monkeypatch):
    handles = []
    honest = LogitsFile.read

    def read(file, views):
        handles.append(file._file)
        return honest(file, views)

    def interrupted(evaluator):
        raise KeyboardInterrupt

    monkeypatch.setattr(LogitsFile, "read", read)
    distill("whole", method="kd", epochs=1)
    assert {handle.closed for handle in handles} == {True}
    monkeypatch.setattr(stage.StudentEvaluator, "measure", interrupted)
    handles.clear()
    with pytest.raises(KeyboardInterrupt):
        distill("broken", method="kd", epochs=1)
    assert {handle.closed for handle in handles} == {True}


def test_all_has_an_adapter_per_block_and_says_what_its_maps_take(distill):
    _, facts = distill("all", method="all", epochs=1)
    pairs = facts["hint_pairs"]
    assert [block for block, _ in pairs] == [f"layer{s}.0" for s in range(1, 5)]
    students = [index for _, index in pairs]
    assert students == sorted(students)
    # Batches of 16; the teacher behind stem and pool at 8, 4, 2 and 1 pixels, float32.
    assert facts["hint_map_bytes"] == 16 * 4 * (8 * 8 * 8 + 16 * 4 * 4 + 32 * 2 * 2 + 64)
    widths = (16, 32, 48, 64, 80)
    channels = [8, 16, 32, 64]
    assert facts["adapter_params"] == sum(c * widths[i] + 2 * c for c, i in zip(channels, students, strict=True))


def test_hints_end_when_the_student_has_passed_its_teacher(distill, capsys, monkeypatch, tmp_path):
    honest, teacher_pct = stage.StudentEvaluator.measure, []

    def measure(evaluator):  # made up: the student passes its teacher in the second epoch, and falls behind it again
        measured = honest(evaluator)
        teacher_pct.append(evaluator.teacher_top1_pct)
        ahead = len(teacher_pct) == 2
        return {**measured, "val_top1_pct": evaluator.teacher_top1_pct + (1 if ahead else -1)}

    monkeypatch.setattr(stage.StudentEvaluator, "measure", measure)
    dropped, _ = distill("dropped", method="selective")
    assert "ended: the student has" in capsys.readouterr().err
    assert [row["beta"] > 0 for row in read_log(tmp_path / "dropped" / "training_log_selective.csv")] == [1, 1, 0, 0]
    trained = [row["train_hint"] is not None for row in read_log(tmp_path / "dropped" / "training_log_selective.csv")]
    assert trained == [True, True, False, False]
    teacher_pct.clear()
    kept, _ = distill("kept", method="selective", adapt_to_teacher=False)
    assert "hints" not in capsys.readouterr().err
    assert dropped != kept


def test_a_weak_teacher_gives_weaker_hints_or_none(distill, capsys, monkeypatch, tmp_path):
    def logged(name, share, **options):
        monkeypatch.setattr(stage, "hint_share", lambda skill: share)
        monkeypatch.setattr(stage, "kd_share", lambda skill: 1.0)
        distill(name, method="selective", epochs=1, **options)
        (row,) = read_log(tmp_path / name / "training_log_selective.csv")
        return row, capsys.readouterr().err

    whole, message = logged("strong", 1.0)
    assert "a share of their weight" not in message
    half, message = logged("weaker", 0.5)
    assert half["beta"] == pytest.approx(whole["beta"] / 2)
    assert "a share of their weight: hints 50 %" in message
    none, message = logged("weak", 0.0)
    assert "train_hint" not in none
    assert none["train_kd"] > 0
    assert "a share of their weight: hints 0 %" in message
    assert logged("as given", 0.0, adapt_to_teacher=False)[0]["beta"] == whole["beta"]


def test_a_teacher_near_chance_leaves_the_training_of_the_control(distill, monkeypatch):
    monkeypatch.setattr(stage, "skill", lambda teacher, majority: 0.2)
    left, _ = distill("left", method="selective", epochs=2)
    control, _ = distill("control", method="ce", epochs=2)
    assert left == control


def test_kd_ends_when_the_student_makes_clearly_fewer_errors_than_its_teacher(distill, capsys, monkeypatch, tmp_path):
    honest = stage.StudentEvaluator.measure

    def measure(evaluator):
        evaluator.teacher_top1_pct = 40.0
        return {**honest(evaluator), "val_top1_pct": 80.0}

    monkeypatch.setattr(stage.StudentEvaluator, "measure", measure)
    distill("passed", method="kd", epochs=2)
    first, second = read_log(tmp_path / "passed" / "training_log_kd.csv")
    assert first["train_kd"] is not None
    assert second["train_kd"] is None
    assert "KD ended: the student has 80.00 %" in capsys.readouterr().err


def test_hints_that_dominate_the_gradient_are_reported_except_in_hint_only_epochs(distill, capsys, monkeypatch):
    shares = {"kd": 3.0, "hint": 94.0, "ce": 3.0}
    monkeypatch.setattr(trainer, "gradient_shares", lambda terms, _: {name: shares[name] for name in terms})
    _, facts = distill("drowned", method="static", hint_epochs=1)
    assert facts["drowned_epochs"] == 3
    assert "the hint loss dominated the gradient (> 90 %) in 3 of 4 epochs" in capsys.readouterr().err
    shares["hint"] = 89.0
    distill("fine", method="static", hint_epochs=1)
    assert "dominated" not in capsys.readouterr().err


def test_measuring_the_shares_of_the_gradient_does_not_change_the_training(distill, monkeypatch):
    measured, _ = distill("measured", method="selective", epochs=1)
    monkeypatch.setattr(trainer, "gradient_shares", lambda terms, _: {})
    assert distill("unmeasured", method="selective", epochs=1)[0] == measured


def test_norms_are_refreshed_after_every_epoch_unless_told_otherwise(distill, monkeypatch):
    calls = []
    monkeypatch.setattr(trainer, "refresh_batch_norms", lambda module, batches: calls.append(len(batches)))
    distill("refreshed", method="ce")
    assert calls == [2, 2, 2, 2]
    distill("as_trained", method="ce", refresh_norms=False)
    assert len(calls) == 4

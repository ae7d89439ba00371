"""Initial and averaged weights of a student: a trained one, a pruned one, a mean, the moving average."""

import hashlib
import json

import pytest
import torch
from interruption import interrupted_at
from safetensors.torch import load

from kdedge.errors import InputError
from kdedge.pipeline.distill import trainer
from kdedge.pipeline.models.registry import STUDENTS, LiteSpec
from kdedge.pipeline.stages import distill as stage


def test_the_moving_average_of_the_weights_is_kept_and_resumed(distill, monkeypatch):
    averages = []
    honest = stage.StudentEvaluator.measure

    def measure(evaluator):
        averages.append({name: value.clone() for name, value in evaluator.student.state_dict().items()})
        return honest(evaluator)

    monkeypatch.setattr(stage.StudentEvaluator, "measure", measure)
    settings = {"method": "selective", "student": "res-xs", "epochs": 3, "lr": 0.01}
    whole, _ = distill("whole", ema=0.9, **settings)
    assert whole != distill("plain", **settings)[0]
    kept = load(whole)
    assert all(torch.equal(kept[name], value) for name, value in averages[2].items()), "what was measured is kept"
    monkeypatch.setattr(stage.StudentEvaluator, "measure", interrupted_at(2, honest))
    with pytest.raises(KeyboardInterrupt):
        distill("broken", ema=0.9, **settings)
    monkeypatch.setattr(stage.StudentEvaluator, "measure", honest)
    assert distill("broken", ema=0.9, **settings)[0] == whole


def test_the_moving_average_follows_the_weights(distill, monkeypatch):
    steps = []
    honest = trainer.Trainer.step

    def step(self, batch, epoch, rate):
        before = {name: value.clone() for name, value in self.result.named_parameters()}
        losses = honest(self, batch, epoch, rate)
        steps.append(epoch)
        if len(steps) > 1:  # the first step starts the average
            for name, value in self.result.named_parameters():
                torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * self._student.get_parameter(name))
        return losses

    monkeypatch.setattr(trainer.Trainer, "step", step)
    distill("average", method="kd", epochs=1, ema=0.75)
    assert len(steps) == 6


def test_distillation_goes_on_from_a_trained_student(distill, tmp_path):
    trained, facts = distill("first", method="ce", epochs=1)
    assert facts["weights_sha256"] == []
    first = tmp_path / "first" / "student.safetensors"
    still, facts = distill("second", method="ce", epochs=1, weights=str(first), lr=1e-6, weight_decay=0.0)
    assert facts["weights_sha256"] == [hashlib.sha256(trained).hexdigest()]
    before, after = load(trained), load(still)
    for name, value in before.items():
        if name.endswith("weight"):
            torch.testing.assert_close(after[name], value, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match=r"student of 16-32-48-64-80 channels; --student lite-s has 24-48-80-128-160"):
        distill("other", method="ce", epochs=1, student="lite-s", weights=str(first))


def test_a_pruned_student_trains_resumes_and_is_loaded_with_its_widths(distill, monkeypatch, tmp_path):
    distill("wide", method="ce", epochs=2)
    settings = {"method": "kd", "weights": str(tmp_path / "wide" / "student.safetensors"), "prune": 0.5, "epochs": 3}
    whole, facts = distill("whole", **settings)
    assert facts["pruned"]["from"] == [16, 32, 48, 64, 80]
    assert facts["pruned"]["by"] == "taylor"
    widths = facts["pruned"]["widths"]
    assert json.loads((tmp_path / "whole" / "student.json").read_text())["widths"] == widths
    still = {**settings, "method": "ce", "epochs": 1, "lr": 1e-6, "weight_decay": 0.0}
    control, control_facts = distill("control", **still, prune_by="scratch")
    assert control_facts["pruned"] == {**facts["pruned"], "by": "scratch"}
    pruned, _ = distill("still", **still)
    wide = load((tmp_path / "wide" / "student.safetensors").read_bytes())["blocks.4.conv.weight"].flatten()
    for begun, from_wide in ((pruned, True), (control, False)):
        kept = load(begun)["blocks.4.conv.weight"].flatten()
        assert bool(((kept[:, None] - wide).abs().amin(1) < 1e-4).float().mean() > 0.99) == from_wide
    shapes = [value.shape[0] for name, value in load(whole).items() if name.endswith("conv.weight")]
    assert sorted(shapes) == sorted(widths) != [16, 32, 48, 64, 80]
    honest = stage.StudentEvaluator.measure
    monkeypatch.setattr(stage.StudentEvaluator, "measure", interrupted_at(1, honest))
    with pytest.raises(KeyboardInterrupt):
        distill("broken", **settings)
    monkeypatch.setattr(stage.StudentEvaluator, "measure", honest)
    assert distill("broken", **settings)[0] == whole


def test_a_pruned_student_trains_further_with_its_widths(distill, tmp_path):
    distill("wide", method="ce", epochs=1)
    pruned, settings = tmp_path / "pruned" / "student.safetensors", {"method": "ce", "epochs": 1}
    distill("pruned", **settings, weights=str(tmp_path / "wide" / "student.safetensors"), prune=0.5)
    begun, facts = distill("further", **settings, weights=str(pruned))
    description = json.loads((tmp_path / "pruned" / "student.json").read_text())
    assert json.loads((tmp_path / "further" / "student.json").read_text()) == description
    assert facts["pruned"] == {}
    assert {name: value.shape for name, value in load(begun).items()} == {
        name: value.shape for name, value in load(pruned.read_bytes()).items()
    }
    (tmp_path / "pruned" / "student.json").unlink()
    with pytest.raises(InputError, match="--student lite-xs has 16-32-48-64-80") as caught:
        distill("alone", **settings, weights=str(pruned))
    assert "if it is a pruned lite-xs, keep student.json next to its weights" in caught.value.hint


def test_a_registered_student_takes_the_channels_of_a_wider_one_with_the_same_pools(distill, monkeypatch, tmp_path):
    distill("wide", method="ce", epochs=1, student="lite-s", lr=0.02)
    weights = str(tmp_path / "wide" / "student.safetensors")
    with pytest.raises(InputError, match="pools behind other convolutions than lite-xs"):
        distill("wrong", method="ce", epochs=1, weights=weights)
    narrow = LiteSpec((16, 32, 48, 64, 80), (1, 2, 3), (), "")
    monkeypatch.setitem(STUDENTS, "narrow", narrow)
    _, facts = distill("narrow", method="ce", epochs=1, student="narrow", weights=weights, prune_by="l1", lr=0.02)
    assert facts["pruned"] == {"from": [24, 48, 80, 128, 160], "widths": list(narrow.widths), "by": "l1"}
    with pytest.raises(InputError, match="only students of five convolutions can"):
        distill("residual", method="ce", epochs=1, student="res-xs", weights=weights, prune=0.5)


def test_the_mean_of_trained_students_has_statistics_of_its_own(distill, tmp_path):
    states = []
    for name, lr in (("one", 0.05), ("two", 0.1)):
        states.append(load(distill(name, method="ce", epochs=1, lr=lr)[0]))
    files = ",".join(str(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    mean, facts = distill("mean", epochs=0, weights=files)
    assert facts["epochs"] == 0
    assert len(facts["weights_sha256"]) == 2
    for name, value in load(mean).items():
        expected = (states[0][name] + states[1][name]) / 2
        if name == "blocks.0.norm.running_mean":
            continue  # linear in the weights, so on the same images it is the mean of the means
        if name.endswith(("running_mean", "running_var")):
            assert not torch.allclose(value, expected)
        elif value.is_floating_point():
            torch.testing.assert_close(value, expected)

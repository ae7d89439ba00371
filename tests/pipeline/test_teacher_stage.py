import dataclasses

import pytest
import torch

from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.models import initial_weights
from kdedge.pipeline.models.backbone import build_backbone
from kdedge.pipeline.stages import teacher
from kdedge.pipeline.training.augmentations import blank_squares
from kdedge.pipeline.training.device import resolve


@pytest.fixture
def train(folder_data, tmp_path):
    config = build_config(
        {
            "data": {"source": f"folder:{folder_data}", "image_size": 16, "val_fraction": 0.2},
            "teacher": {"arch": "shufflenet_v2_x0_5", "weights": "auto", "epochs": 2, "batch_size": 16},
            "runtime": {"device": "cpu", "threads": 1, "precision": "fp32", "seed": 3},
        }
    )
    config = dataclasses.replace(config, runtime=resolve(config.runtime, None))

    def run(name, **given):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        sections = {key: dataclasses.replace(getattr(config, key), **changed) for key, changed in given.items()}
        changed = dataclasses.replace(config, **sections)
        return teacher.run(changed, {}, out), (out / "teacher.safetensors").read_bytes()

    return run


def test_flips_of_the_teachers_images_have_their_own_option(train, monkeypatch):
    flips = []

    class Seen(teacher.Batches):
        def epoch(self, epoch, part):
            flips.append(self.flip)
            return super().epoch(epoch, part)

    monkeypatch.setattr(teacher, "Batches", Seen)
    monkeypatch.setattr(initial_weights, "_imagenet_state", offline)
    for name, given in (
        ("both", {}),
        ("student", {"distill": {"flip": False}}),
        ("none", {"teacher": {"flip": False}}),
    ):
        train(name, **given)
    assert flips == [True] * 4 + [False] * 2


def test_squares_are_blanked_in_the_images_that_the_teacher_trains_on(train, monkeypatch):
    seen = []

    def blank(pixels, numbers, *, epoch, side):
        out = blank_squares(pixels, numbers, epoch=epoch, side=side)
        seen.append((epoch, side, torch.equal(out, pixels)))
        return out

    monkeypatch.setattr(teacher, "blank_squares", blank)
    monkeypatch.setattr(initial_weights, "_imagenet_state", offline)
    _, plain = train("plain")
    _, blanked = train("blanked", teacher={"cutout": 6})
    steps = len(seen) // 4
    expected = [(epoch, side, side == 0) for side in (0, 6) for epoch in (0, 1)]
    assert seen == [entry for entry in expected for _ in range(steps)]
    assert plain != blanked


@pytest.mark.parametrize("epochs", [2, -1])
def test_the_last_epochs_can_be_without_label_smoothing(train, monkeypatch, epochs):
    monkeypatch.setattr("kdedge.pipeline.training.epoch_loop._LEARNED_PCT", 0.0)  # with -1 the second is the last
    seen = []
    honest = teacher.cross_entropy

    def cross_entropy(*arguments, label_smoothing):
        seen.append(label_smoothing)
        return honest(*arguments, label_smoothing=label_smoothing)

    monkeypatch.setattr(teacher, "cross_entropy", cross_entropy)
    monkeypatch.setattr(initial_weights, "_imagenet_state", offline)
    train("hard", teacher={"hard_epochs": 1, "epochs": epochs})
    half = len(seen) // 2
    assert seen == half * [0.1] + half * [0.0]


def offline(arch):
    raise OSError("Name or service not known")


def online(arch):
    return build_backbone(arch, 1000, "imagenet").state_dict()


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_resumed_teacher_goes_on_from_the_weights_and_at_the_rate_that_it_began_with(train, monkeypatch):
    monkeypatch.setattr(initial_weights, "_imagenet_state", offline)
    whole, weights = train("whole")
    measure, calls = teacher.predict_logits, []

    def once(*arguments):
        calls.append(arguments)
        return measure(*arguments) if len(calls) == 1 else interrupted()

    monkeypatch.setattr(teacher, "predict_logits", once)
    with pytest.raises(KeyboardInterrupt):
        train("resumed")
    monkeypatch.setattr(teacher, "predict_logits", measure)
    monkeypatch.setattr(initial_weights, "_imagenet_state", online)
    resumed, same = train("resumed")
    assert resumed.pop("earlier_s") > whole.pop("earlier_s")
    assert resumed == whole
    assert whole["weights"] == "none"
    assert same == weights


def test_a_new_head_on_loaded_weights_learns_faster_than_the_body(train, monkeypatch):
    rates = []

    def watched(network, settings):
        optimizer = build(network, settings)
        body, head = (group["params"] for group in optimizer.param_groups)
        assert [len(head), len(body)] == [2, len(list(network.parameters())) - 2]
        optimizer.register_step_post_hook(lambda *_: rates.append(tuple(g["lr"] for g in optimizer.param_groups)))
        return optimizer

    build = teacher._optimizer
    monkeypatch.setattr(teacher, "_optimizer", watched)
    # 0.1 and 0.01 are for 128 images per step, and here are 16
    for load, lr, expected in ((online, 0.0, 10), (online, 0.005, 2.5), (online, 0.03, 1), (offline, 0.0, 1)):
        monkeypatch.setattr(initial_weights, "_imagenet_state", load)
        train(f"{load.__name__}-{lr}", teacher={"lr": lr, "epochs": 1})
        assert {round(head / body, 3) for body, head in rates} == {expected}
        rates.clear()


def test_the_peak_learning_rate_is_as_given_or_by_the_initial_weights(train, monkeypatch, capsys):
    rates = ((offline, 0.0, 0.0125), (online, 0.0, 0.00125), (offline, 0.03, 0.03), (online, 0.03, 0.03))
    for load, lr, expected in rates:  # 0.1 and 0.01 are for 128 images per step, and here are 16
        monkeypatch.setattr(initial_weights, "_imagenet_state", load)
        train(f"{load.__name__}-{lr}", teacher={"lr": lr, "epochs": 1})
        assert f"peak rate {expected}," in capsys.readouterr().err

"""What one step minimises, against sums made here of the named losses and of a copy of the student."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdedge.dataset import Split
from kdedge.inputs import image_input
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.distill.hints import HintAdapters, HintPair
from kdedge.pipeline.distill.losses import kd_loss
from kdedge.pipeline.distill.mixing import mix_batch
from kdedge.pipeline.distill.teacher_logits import CachedTeacher, LogitsFile
from kdedge.pipeline.distill.trainer import Trainer
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.teacher import FeatureTap, build_teacher
from kdedge.pipeline.training.batches import Batches, class_shares, top1_pct

PAIRS = (HintPair("layer1.1", 1, 64, 32),)


def make(method="static", kd_share=1.0, images=16, **settings):
    """Return a trainer of tiny networks, its student and the first batch, of which alone hints are calibrated."""
    torch.manual_seed(0)
    defaults = {"method": method, "scan_batches": 1, "hint_epochs": 0, "lr": 0.01, "schedule": "constant"}
    config = build_config(
        {
            "distill": {"weight_decay": 0.0, "norm_bias_lr": 1.0, **defaults, **settings},
            "runtime": {"device": "cpu", "threads": 1, "precision": "fp32"},
        }
    )
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (images, 16, 16, 3), dtype=np.uint8), np.arange(images) % 3)
    batches = Batches(split, 16, seed=0, shift=1, device=torch.device("cpu"))
    teacher, student = build_teacher("resnet18", 3, "cifar-pool").eval(), build_student("lite-xs", 3, image_input(16))
    pairs = PAIRS if method == "static" else ()
    chosen = tuple(pair.teacher_block for pair in pairs)
    nothing_kept = LogitsFile(Path("unused"), classes=3, augmentations=1)
    nothing_kept.close()
    cached = CachedTeacher(teacher, config.runtime, nothing_kept, 16)
    trainer = Trainer(config, cached, student, pairs=pairs, chosen=chosen, batches=batches, kd_share=kd_share)
    return trainer, teacher, student, next(batches.epoch(0))


@pytest.mark.parametrize("method", ["static", "kd", "ce"])
def test_a_step_minimises_alpha_kd_plus_beta_hint_plus_gamma_ce(method):
    trainer, teacher, student, batch = make(method, alpha=3.0, gamma=0.25, temperature=2.5, hint_loss="raw", beta=7.0)
    before = copy.deepcopy(student).train()
    losses = trainer.step(batch, 0, 1.0)
    logits = before(batch.pixels)
    kd = kd_loss(logits, teacher(batch.pixels).detach().half().float(), 2.5)
    ce = functional.cross_entropy(logits, batch.labels)
    if method == "ce":
        assert losses.keys() == {"loss", "ce", "top1_pct"}
        assert losses["loss"].item() == losses["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
        return
    assert losses["kd"].item() == pytest.approx(kd.item(), rel=1e-5)
    assert losses["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    hint = 7 * losses["hint"].item() if method == "static" else 0.0
    assert (hint > 0) == (method == "static")
    assert losses["loss"].item() == pytest.approx(3 * kd.item() + hint + 0.25 * ce.item(), rel=1e-5)
    # No hint reaches the classifier. The first step of Nesterov momentum 0.9 goes 1.9 times as far as the gradient.
    (gradient,) = torch.autograd.grad(3 * kd + 0.25 * ce, [before.classifier.weight])
    moved = before.classifier.weight - student.classifier.weight
    torch.testing.assert_close(moved, 0.01 * 1.9 * gradient, rtol=1e-3, atol=1e-7)


def test_the_teacher_sees_the_mixed_images():
    trainer, teacher, student, batch = make("kd", mix=1.0, temperature=2.0)
    before = copy.deepcopy(student).train()
    losses = trainer.step(batch, 0, 1.0)
    mixed = mix_batch(batch, 1.0, 3, (0, 0))
    assert not torch.equal(mixed.pixels, batch.pixels)
    logits, wanted = before(mixed.pixels), teacher(mixed.pixels).detach().half().float()
    assert losses["kd"].item() == pytest.approx(kd_loss(logits, wanted, 2.0).item(), rel=1e-4, abs=1e-6)
    assert losses["ce"].item() == pytest.approx(functional.cross_entropy(logits, mixed.shares).item(), rel=1e-5)
    assert losses["top1_pct"].item() == top1_pct(logits, mixed.shares.argmax(1)).item()


def test_no_images_are_mixed_at_a_low_rate():
    for rate in (0.1, 0.09):
        trainer, _, student, batch = make("ce", mix=1.0)
        before = copy.deepcopy(student).train()
        mixed = mix_batch(batch, 1.0, 3, (0, 0))
        pixels, targets = (mixed.pixels, mixed.shares) if rate == 0.1 else (batch.pixels, batch.labels)
        wanted = functional.cross_entropy(before(pixels), targets).item()
        assert trainer.step(batch, 0, rate)["ce"].item() == pytest.approx(wanted, rel=1e-5)


def test_hints_are_of_the_mixed_images():
    trainer, teacher, student, batch = make(mix=1.0)
    before, adapters = copy.deepcopy(student).train(), copy.deepcopy(trainer.adapters).train()
    mixed = mix_batch(batch, 1.0, 3, (0, 0))
    with FeatureTap(teacher, ("layer1.1",)) as tap:
        teacher(mixed.pixels)
        wanted = adapters(before.features(mixed.pixels), tap.maps).item()
    assert trainer.step(batch, 0, 1.0)["hint"].item() == pytest.approx(wanted, rel=1e-4)


def test_class_shares_are_in_float32_under_autocast():
    shares = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    with torch.autocast("cpu", torch.bfloat16):
        classes = class_shares(torch.tensor([0, 1]), shares, 2)
    assert torch.equal(classes, shares)


def test_the_share_of_mixed_batches():
    batch = make("ce")[3]
    given = [batch._replace(augmentations=np.array([number])) for number in range(400)]
    mixed = [mix_batch(one, 0.25, 3, (0, 1)).shares is not None for one in given]
    assert sum(mixed) / 400 == pytest.approx(0.25, abs=0.06)
    assert mix_batch(batch, 0.0, 3, (0, 1)) is batch


def test_the_shares_of_the_gradient_are_of_the_weighted_terms():
    shares = {beta: make(hint_loss="raw", beta=beta) for beta in (1e-6, 1e6)}
    for trainer, _, _, batch in shares.values():
        trainer.step(batch, 0, 1.0)
    few, most = (trainer.shares for trainer, *_ in shares.values())
    assert few["hint"] < 1
    assert most["hint"] > 99
    assert sum(few.values()) == pytest.approx(100)


def test_the_kd_term_of_a_weak_teacher_counts_less():
    trainer, _, _, batch = make("kd", kd_share=0.25, alpha=2.0)
    losses = trainer.step(batch, 0, 1.0)
    assert losses["loss"].item() == pytest.approx(0.5 * losses["kd"].item() + losses["ce"].item(), rel=1e-5)


def test_hint_only_epochs_minimise_the_hint_alone():
    trainer, _, _, batch = make(hint_epochs=1, hint_loss="raw", beta=7.0)
    losses = trainer.step(batch, 0, 1.0)
    assert losses["loss"].item() == pytest.approx(7 * losses["hint"].item(), rel=1e-6)
    assert losses.keys() == {"loss", "hint", "ce", "top1_pct"}


def test_normalised_hints_start_as_large_as_the_cross_entropy_at_beta_250_and_by_default_ten_times_as_large():
    trainer, _, _, batch = make()
    losses = trainer.step(batch, 0, 1.0)
    weighted = trainer.hint_weight(250.0) * losses["hint"].item()
    assert weighted == pytest.approx(losses["ce"].item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(losses["kd"].item() + (10 + 1) * weighted, rel=1e-4)


def test_hints_without_anything_to_learn_have_no_weight(monkeypatch):
    monkeypatch.setattr(HintAdapters, "forward", lambda *_: torch.zeros(()))  # maps that are 0 in both networks
    assert make()[0].hint_weight(250.0) == 0.0


def test_beta_counts_in_both_kinds_of_hints():
    weights = {beta: make(beta=beta)[0].hint_weight(beta) for beta in (25.0, 250.0, 2500.0)}
    assert weights[2500.0] == pytest.approx(10 * weights[250.0])
    assert weights[25.0] == pytest.approx(weights[250.0] / 10)
    trainer = make()[0]
    assert trainer.hint_weight(125.0) == pytest.approx(weights[250.0] / 2)
    assert make(hint_loss="raw", beta=40.0)[0].hint_weight(40.0) == 40.0
    assert make("kd", beta=0.0)[0].hint_weight(0.0) == 0.0


def test_the_cross_entropy_is_weighted_by_the_class_in_a_balanced_training():
    trainer, _, student, batch = make("ce")
    trainer._batches = dataclasses.replace(trainer._batches, balance="loss")
    before = copy.deepcopy(student).train()
    ce = trainer.step(batch, 0, 1.0)["ce"].item()
    weights = 16 / 3 / torch.bincount(batch.labels)
    expected = functional.cross_entropy(before(batch.pixels), batch.labels, weight=weights).item()
    assert ce == pytest.approx(expected, rel=1e-5)

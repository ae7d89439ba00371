"""Trainings of classes of unequal size: weights of the loss, the sampler, and what decides about epochs."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdedge.dataset import Split
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.training.balance import balanced_order, class_weights, cross_entropy
from kdedge.pipeline.training.batches import Batches
from kdedge.pipeline.training.epoch_loop import EpochLoop

LABELS = np.repeat([0, 1, 3], [60, 9, 3])  # class 2 has no images


def batches(balance, size=12):
    images = np.random.default_rng(0).integers(1, 256, (len(LABELS), 8, 8, 3), dtype=np.uint8)
    return Batches(Split(images, LABELS), size, seed=0, shift=1, device=torch.device("cpu"), balance=balance)


def test_the_weights_of_all_images_of_a_class_sum_to_the_same():
    weights = class_weights(LABELS).numpy()
    assert (weights[[0, 1, 3]] * [60, 9, 3]).tolist() == pytest.approx([24, 24, 24])
    assert weights[2] == 0
    assert weights[LABELS].mean() == pytest.approx(1)


def test_the_weighted_loss_is_the_weighted_mean_of_the_images():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 2])
    weights = torch.tensor([1.0, 2.0, 5.0])
    plain = functional.cross_entropy(logits, labels, weight=weights)
    assert cross_entropy(logits, labels, weights).item() == pytest.approx(plain.item())
    smoothed = -(0.9 * torch.eye(3)[labels] + 0.1 / 3).mul(functional.log_softmax(logits, 1)).sum(1)
    expected = (smoothed * weights[labels]).sum() / weights[labels].sum()
    assert cross_entropy(logits, labels, weights, label_smoothing=0.1).item() == pytest.approx(expected.item())
    for smoothing in (0.0, 0.1):
        same = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        assert torch.equal(cross_entropy(logits, labels, label_smoothing=smoothing), same)


def test_an_order_goes_through_each_class_before_it_repeats_an_image():
    order, rounds = balanced_order(LABELS, np.random.default_rng(0))
    assert np.bincount(LABELS[order]).tolist() == [24, 24, 0, 24]
    for index in range(60, 72):
        assert sorted(rounds[order == index]) == list(range(np.sum(order == index)))
    assert np.bincount(order[LABELS[order] == 0]).max() == 1


def test_a_sampled_epoch_shows_a_repeated_image_in_other_views_and_is_the_same_each_time():
    sampled = batches("sampler")
    epochs = [[batch.augmentations for batch in sampled.epoch(epoch)] for epoch in (0, 0, 1)]
    assert len(epochs[0]) == len(sampled) == 6
    np.testing.assert_array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], epochs[2])
    rare = np.concatenate(epochs[0])
    rare = rare[rare // 18 == 71]
    assert len(set(rare.tolist())) > 3
    assert (batches("sampler").class_weights, batches("none").class_weights) == (None, None)


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_other_trainings_see_every_image_once(balance):
    numbers = np.concatenate([batch.augmentations for batch in batches(balance).epoch(0)])
    assert sorted(numbers // 18) == list(range(72))


@pytest.mark.parametrize(("balance", "kept"), [("none", 1), ("loss", 3)])
def test_the_mean_recall_decides_about_the_epochs_of_a_balanced_training(tmp_path, balance, kept):
    model = torch.nn.Linear(1, 1, bias=False)
    top1, balanced = [95.0, 70.0, 72.0], [25.0, 60.0, 70.0]  # the first epoch predicts the largest class

    def step(batch, epoch, rate):
        model.weight.data[:] = epoch + 1
        return {"loss": torch.tensor(1.0), "ce": torch.tensor(1.0)}

    def finish(epoch):
        row = {"val_top1_pct": top1[epoch]}
        return row if balance == "none" else row | {"val_balanced_pct": balanced[epoch]}

    loop = EpochLoop(
        title="tiny", model=model, epochs=3, batches=batches(balance), val_labels=np.repeat(LABELS, 20),
        state={"model": model}, step=step, finish_epoch=finish, out_dir=tmp_path, csv_name="log.csv",
    )  # fmt: skip
    loop.run()
    assert model.weight.item() == kept


def test_balance_and_augmentation_are_recorded_only_where_they_change_the_training():
    plain, balanced = build_config(), build_config({"training": {"balance": "sampler"}})
    for stage in ("teacher", "distill"):
        assert "training" not in STAGES[stage].fingerprint(plain)
        assert "augment" not in STAGES[stage].fingerprint(plain)[stage]
        assert STAGES[stage].fingerprint(balanced)["training"] == {"balance": "sampler"}
    assert dataclasses.replace(balanced, training=plain.training) == plain

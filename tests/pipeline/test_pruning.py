"""The best channels of a wider student: their scores, the widths of a share of the cost, and the sliced weights."""

import numpy as np
import pytest
import torch

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.inputs import image_input
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.distill.pruning import best_channels, channel_scores, cost_of, narrower, slice_channels
from kdedge.pipeline.distill.start import start_student
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.weights import save_module
from kdedge.pipeline.training.batches import Batches

INPUTS = image_input(16)
NARROW, WIDE = (16, 16, 16, 32, 16), (32, 24, 16, 48, 32)


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8), np.arange(32) % 3)
    return list(Batches(split, 16, seed=0, shift=1, device=torch.device("cpu")).epoch(0))


def with_dead_channels():
    """Return a wide student of whose channels only some do anything, and these."""
    torch.manual_seed(0)
    wide = build_student("lite-xs", 3, INPUTS, WIDE).eval()
    alive = [torch.randperm(wide_width)[:width].sort().values for wide_width, width in zip(WIDE, NARROW, strict=True)]
    with torch.no_grad():
        for block, kept in zip(wide.blocks, alive, strict=True):
            dead = torch.ones(block.conv.out_channels, dtype=torch.bool)
            dead[kept] = False
            block.conv.weight[dead] = 0
            block.norm.running_mean.uniform_(-0.1, 0.1)
            block.norm.bias[kept] = 0.3
            block.norm.running_mean[dead] = 0
    return wide, alive


@pytest.mark.parametrize("by", ["taylor", "l1"])
def test_channels_that_do_nothing_are_the_worst_and_without_them_the_logits_are_the_same(batches, by):
    wide, alive = with_dead_channels()
    kept = best_channels(channel_scores(wide, batches, by), NARROW)
    assert [one.tolist() for one in kept] == [one.tolist() for one in alive]
    narrow = build_student("lite-xs", 3, INPUTS, NARROW).eval()
    slice_channels(wide, narrow, kept)
    with torch.no_grad():
        torch.testing.assert_close(narrow(batches[0].pixels), wide(batches[0].pixels))


def test_the_score_is_what_the_removal_of_a_channel_changes_in_the_loss_to_first_order(batches):
    torch.manual_seed(0)
    student = build_student("lite-xs", 3, INPUTS, NARROW).eval()
    score = channel_scores(student, [batch._replace(pixels=batch.pixels[:1], labels=batch.labels[:1])
                                     for batch in batches[:1]], "taylor")[4]  # fmt: skip
    pixels, label = batches[0].pixels[:1], batches[0].labels[:1]
    last = student.features(pixels)[-1].detach()

    def loss(factor, channel):
        scaled = last.clone()
        scaled[:, channel] *= factor
        return torch.nn.functional.cross_entropy(student.classify(scaled), label).item()

    for channel in range(NARROW[4]):
        slope = (loss(1.01, channel) - loss(0.99, channel)) / 0.02
        assert score[channel].item() == pytest.approx(abs(slope), abs=2e-4, rel=0.05)


def test_random_scores_depend_on_the_seed_alone(batches):
    student = build_student("lite-xs", 3, INPUTS)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.cat(channel_scores(student, [], "random")))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_share_of_the_cost_is_left_in_multiples_of_16():
    widths = (32, 64, 128, 256, 384)
    student = build_student("lite", 10, image_input(32))
    cost = cost_of(student, image_input(32))
    assert cost(widths) / 1e6 == pytest.approx(71.67, abs=0.05)
    torch.manual_seed(0)
    scores = [torch.rand(width) for width in widths]
    for share in (0.8, 0.5, 0.1):
        found = narrower(widths, scores, cost, share)
        assert 0.8 * share < cost(found) / cost(widths) <= share
        assert all(width % 16 == 0 and width <= before for width, before in zip(found, widths, strict=True))
    assert narrower(widths, scores, cost, 1.0) == widths
    assert narrower(widths, scores, cost, 1e-6) == (16,) * 5
    # Channels without a score go first, wherever they are, down to a multiple of 16.
    scores[1][7:27] = 0
    assert narrower(widths, scores, cost, 0.87) == (32, 48, 128, 256, 384)


def test_odd_widths_lose_their_remainder_first():
    assert narrower((24, 48), [torch.rand(24), torch.full((48,), 9.0)], lambda w: w[0] + w[1], 0.95) == (16, 48)


def test_weights_of_another_kind_of_student_have_no_channels_to_take(tmp_path):
    file = tmp_path / "student.safetensors"
    save_module(build_student("res-xs", 3, INPUTS), file)
    config = build_config({"distill": {"student": "lite-xs", "prune": 0.5, "weights": str(file)}})
    split = Split(np.zeros((4, 16, 16, 3), np.uint8), np.arange(4) % 3)
    with pytest.raises(InputError, match="has no student of five convolutions to prune"):
        start_student(build_student("lite-xs", 3, INPUTS), config, INPUTS, Batches(split, 4, 0, 1, torch.device("cpu")))

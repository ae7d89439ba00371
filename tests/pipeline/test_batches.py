"""Batches of a training set: their pixels, order and size."""

import copy

import numpy as np
import torch
from torch import nn

from kdedge.dataset import Split, split_train_val
from kdedge.inputs import image_input
from kdedge.pipeline.training.batches import Batches, place, predict_logits, to_network

CPU = torch.device("cpu")


def images(count=12, size=8):
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (count, size, size, 3), dtype=np.uint8)


def test_runs_of_other_seeds_and_sizes_see_the_same_view_of_an_image():
    whole = Split(images(60), np.arange(60) % 3)
    seen = []
    for seed, size in ((0, 0), (1, 0), (1, 30)):
        train, _ = split_train_val(whole, 0.2, size)
        batches = Batches(train, 16, seed, shift=1, device=CPU)
        seen.append(
            {int(v): p for batch in batches.epoch(1) for v, p in zip(batch.augmentations, batch.pixels, strict=True)}
        )
    for other in seen[1:]:
        both = seen[0].keys() & other.keys()
        assert len(both) > 10
        assert all(torch.equal(seen[0][view], other[view]) for view in both)
        # One view per image: no image was seen as another number.
        assert not {view // 18 for view in seen[0]} & {view // 18 for view in other} - {view // 18 for view in both}
    assert [int(v) for v in seen[0]] != [int(v) for v in seen[1]]


def test_pixels_become_floats_in_0_to_1_channels_last():
    out = to_network(torch.from_numpy(images(2)), image_input(8), CPU)
    assert out.shape == (2, 3, 8, 8)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out.numpy().transpose(0, 2, 3, 1) * 255, images(2), atol=1e-4)


def test_strided_depthwise_convolutions_of_a_placed_module_compute_in_float32_and_return_what_came():
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False)
    placed = place(nn.Sequential(copy.deepcopy(conv), nn.Conv2d(4, 4, 3, stride=2, groups=2)), CPU)
    pixels = torch.rand(2, 4, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = placed[0](pixels)
    assert torch.equal(found, conv(pixels.float()).bfloat16())
    assert type(placed[1]) is nn.Conv2d
    assert placed.state_dict().keys() == nn.Sequential(conv, placed[1]).state_dict().keys()


def test_an_epoch_visits_images_once_in_an_order_of_its_own():
    split = Split(images(10), np.arange(10))
    batches = Batches(split, 4, seed=0, shift=0, device=CPU)
    epochs = [torch.cat([batch.labels for batch in batches.epoch(epoch)]).tolist() for epoch in (0, 0, 1)]
    assert len(batches) == 2
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(set(epochs[0])) == 8


def test_a_batch_larger_than_the_set_is_the_whole_set():
    assert len(list(Batches(Split(images(3), np.arange(3)), 64, seed=0, shift=0, device=CPU).epoch(0))) == 1


def test_large_images_are_evaluated_in_smaller_batches_that_take_no_more_memory():
    sizes = []

    def model(pixels):
        sizes.append(len(pixels))
        return pixels.mean((2, 3))

    pixels = images(45, size=224)
    logits = predict_logits(model, Split(pixels, np.zeros(45, np.int64)), CPU)
    assert sizes == [20, 20, 5]
    np.testing.assert_allclose(logits, pixels.mean((1, 2)) / 255, rtol=1e-4)

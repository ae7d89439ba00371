import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from kdedge.inputs import image_input
from kdedge.pipeline.distill.optimizer import build_optimizer, set_learning_rate
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.models import initial
from kdedge.pipeline.models.initial import initialise, whitening_filters
from kdedge.pipeline.models.student import build_student


def correlated_images(count=40, size=16):
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, 5, 5, 3))
    index = np.arange(size) * 5 // size
    noise = rng.normal(0, 25, (count, size, size, 3))
    return np.clip(coarse[:, index][:, :, index] + noise, 0, 255).astype(np.uint8)


def test_whitening_filters_give_uncorrelated_responses_of_variance_one():
    images = correlated_images()
    filters = whitening_filters(images, 3)
    assert filters.shape == (27, 3, 3, 3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    responses = functional.conv2d(pixels, filters.double()).transpose(0, 1).flatten(1)
    covariance = torch.cov(responses)
    torch.testing.assert_close(covariance, torch.eye(27, dtype=torch.float64), atol=0.05, rtol=0)
    # Strongest direction first: an eigenvalue is the inverse square of its filter's norm.
    norms = filters.flatten(1).norm(dim=1)
    assert (norms.diff() >= -1e-4 * norms[:-1]).all()


@pytest.mark.parametrize("kind", ["grey", "binary", "constant border", "flat colour", "one colour", "single image"])
def test_directions_in_which_images_do_not_vary_are_not_whitened(kind):
    images = correlated_images(40, size=16)
    if kind in ("grey", "binary", "constant border"):
        images = images[..., :1].repeat(3, axis=3)
    if kind == "binary":
        images = np.where(images > 127, 255, 0).astype(np.uint8)
    if kind == "constant border":
        images = np.pad(images[:, 6:10, 6:10], ((0, 0), (6, 6), (6, 6), (0, 0)))
    if kind == "flat colour":
        images = images[:, :1, :1].repeat(16, axis=1).repeat(16, axis=2)
    if kind == "one colour":
        images = np.full_like(images, 200)
    if kind == "single image":
        images = images[:1]
    filters = whitening_filters(images, 3)
    assert torch.isfinite(filters).all()
    most = {"grey": 9, "binary": 9, "constant border": 9, "flat colour": 3, "one colour": 0, "single image": 27}[kind]
    assert len(filters) <= most
    assert (len(filters) > 0) == (most > 0)
    if most:
        # No filter answers more than its direction varies.
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
        responses = functional.conv2d(pixels, filters.double())
        assert responses.transpose(0, 1).flatten(1).std(1).max() < 1.1
        assert (filters.flatten(1).norm(dim=1) / filters.flatten(1).norm(dim=1).min()).max() < 60
    initialise(build_student("lite-xs", 4, image_input(16)), images)


def test_patches_of_large_images_are_thinned_and_images_are_spread_over_all():
    images = correlated_images(12, size=96)
    seen = []
    real = initial.whitening_filters

    def spy(chosen, side):
        seen.append(chosen)
        return real(chosen, side)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "whitening_filters", spy)
        patch.setattr(initial, "_IMAGES", 4)
        patch.setattr(initial, "_CHUNK", 3)
        initialise(build_student("lite-xs", 4, image_input(96)), images)
        initialise(build_student("lite-xs", 4, image_input(96)), images[:7])
    np.testing.assert_array_equal(seen[0], images[::3])
    np.testing.assert_array_equal(seen[1], images[:7:2])
    pixels = torch.from_numpy(images[::3]).permute(0, 3, 1, 2).double() / 255
    patches = pixels.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    responses = patches @ real(images[::3], 3).double().flatten(1).T
    torch.testing.assert_close(torch.cov(responses.T), torch.eye(27, dtype=torch.float64), atol=0.05, rtol=0)


def test_a_student_starts_with_pairs_of_filters_and_with_identities():
    torch.manual_seed(0)
    student = build_student("lite-xs", 4, image_input(16))
    before = [block.conv.weight.detach().clone() for block in student.blocks]
    images = correlated_images()
    initialise(student, images)
    first = student.blocks[0].conv.weight
    torch.testing.assert_close(first[:8], whitening_filters(images, 3)[:8])
    torch.testing.assert_close(first[8:16], -first[:8])
    for block, old in zip(list(student.blocks)[1:], before[1:], strict=True):
        inputs = block.conv.in_channels
        x = torch.rand(2, inputs, 6, 6)
        torch.testing.assert_close(block.conv(x)[:, :inputs], x)
        assert torch.equal(block.conv.weight[inputs:], old[inputs:])


@pytest.mark.parametrize("kind", ["grey", "tinted", "color"])
def test_a_student_of_images_without_color_starts_at_random(kind):
    images = correlated_images()
    if kind != "color":
        images = images[..., :1].repeat(3, axis=3)
    if kind == "tinted":
        images = (images * np.array([1, 0.9, 0.8])).astype(np.uint8)
    student = build_student("lite-xs", 4, image_input(16))
    before = [block.conv.weight.detach().clone() for block in student.blocks]
    initialise(student, images)
    same = [torch.equal(block.conv.weight, old) for block, old in zip(student.blocks, before, strict=True)]
    assert same == 5 * [kind != "color"]


def test_an_odd_number_of_filters_leaves_the_rest_random():
    student = nn.Sequential(nn.Conv2d(3, 61, 3))
    old = student[0].weight.detach().clone()
    initialise(student, correlated_images())
    assert torch.equal(student[0].weight[54:], old[54:])
    assert not torch.isclose(student[0].weight[:54], old[:54]).all(dim=(1, 2, 3)).any()


def test_batch_norm_biases_learn_faster_and_decay_as_fast_as_the_others():
    student, adapters = (
        build_student("lite-xs", 4, image_input(16)),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)),
    )
    settings = dataclasses.replace(DistillConfig(), norm_bias_lr=8.0, weight_decay=0.4)
    for name in ("sgd", "adam"):
        optimizer = build_optimizer(dataclasses.replace(settings, optimizer=name), student, adapters)
        set_learning_rate(optimizer, 0.01)
        slow, fast = optimizer.param_groups
        assert (slow["lr"], fast["lr"]) == (0.01, 0.08)
        assert slow["lr"] * slow["weight_decay"] == fast["lr"] * fast["weight_decay"]
        assert [id(p) for p in fast["params"]] == [id(block.norm.bias) for block in student.blocks]
        every = {id(p) for p in (*student.parameters(), *adapters.parameters())}
        assert {id(p) for p in (*slow["params"], *fast["params"])} == every


def test_residual_blocks_of_torchvision_keep_their_weights():
    torch.manual_seed(0)
    student = build_student("mobilenet_v2", 4, image_input(32))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    initialise(student, correlated_images(size=32))
    changed = [
        name for (name, now), old in zip(student.named_parameters(), before, strict=True) if not torch.equal(now, old)
    ]
    assert changed == ["blocks.0.0.weight"]

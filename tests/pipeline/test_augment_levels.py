"""The levels of --augment: the same images twice, after an interruption, and for teacher and student."""

import itertools

import numpy as np
import pytest
import torch
from command_line import invoke

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.models.student import Student
from kdedge.pipeline.models.teacher import Teacher
from kdedge.pipeline.stages import distill, teacher
from kdedge.pipeline.training import transforms
from kdedge.pipeline.training.batches import Batches, to_network
from kdedge.pipeline.training.length import fit_to_images
from kdedge.pipeline.training.options import AUGMENT_LEVELS

CPU = torch.device("cpu")
STRONGER = ["standard", "strong"]


def batches(augment, *, flip=True, seed=0, count=32, shift=2):
    pixels = np.random.default_rng(0).integers(1, 256, (count, 16, 16, 3), dtype=np.uint8)
    return Batches(Split(pixels, np.arange(count) % 3), 16, seed, shift, CPU, flip, augment)


def pixels_of(batches, epoch=0):
    return torch.cat([batch.pixels for batch in batches.epoch(epoch)])


@pytest.mark.parametrize("level", AUGMENT_LEVELS)
def test_a_level_draws_the_same_images_twice_and_leaves_the_generator_alone(level):
    torch.manual_seed(5)
    first = pixels_of(batches(level), 1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    assert torch.equal(pixels_of(batches(level), 1), first)
    assert first.shape == (32, 3, 16, 16)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= first.min() < first.max() <= 1


@pytest.mark.parametrize("level", STRONGER)
def test_other_epochs_and_groups_have_other_draws(level):
    images = torch.full((32, 16, 16, 3), 200, dtype=torch.uint8)
    images[:, 4:9, 2:7] = torch.tensor([10, 60, 250], dtype=torch.uint8)
    seen = [transforms.transform_images(images, level, flip=True, key=(0, epoch, 0)) for epoch in range(2)]
    assert not torch.equal(*seen)
    groups = seen[0].split(8)
    for group in groups:
        assert all(torch.equal(image, group[0]) for image in group)
    assert not any(torch.equal(one[0], other[0]) for one, other in itertools.combinations(groups, 2))


def test_no_augmentation_is_the_image_and_light_is_as_before():
    images = batches("none")
    order = np.random.default_rng([0, 0]).permutation(32)
    plain = to_network(torch.from_numpy(images.split.images[order]), images.split.spec, CPU)
    assert torch.equal(pixels_of(images), plain)
    assert torch.equal(pixels_of(batches("none", shift=0)), pixels_of(batches("light", shift=0, flip=False)))
    assert not torch.equal(pixels_of(batches("light")), pixels_of(images))


def test_images_that_are_not_mirrored_are_neither_mirrored_nor_turned_far(monkeypatch):
    for level, flip in itertools.product(STRONGER, (False, True)):
        names = {type(step).__name__ for step in transforms._transform(level, 16, flip).transforms}
        assert ("RandomHorizontalFlip" in names) == flip
        assert ("TrivialAugmentWide" in names) == (flip and level == "strong")


def test_mixed_images_have_shares_of_their_classes():
    grey = torch.arange(3) / 3
    pixels = torch.stack([torch.full((3, 16, 16), value) for value in grey])
    for number in range(20):
        mixed, shares = transforms.mix_images(pixels, (number,))
        torch.testing.assert_close(shares.sum(1), torch.ones(3))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ grey)
    strong = next(batches("strong").epoch(0))
    torch.testing.assert_close(strong.shares.sum(1), torch.ones(len(strong.shares)))
    assert torch.equal(strong.labels, strong.shares.argmax(1))
    assert strong.targets is strong.shares
    assert next(batches("standard").epoch(0)).shares is None


@pytest.fixture(scope="module")
def config(folder_data):
    fixed = {"epochs": 3, "batch_size": 16, "lr": 0.05, "augment": "strong"}
    return build_config(
        {
            "data": {"source": str(folder_data), "image_size": 16, "val_fraction": 0.2},
            "teacher": {"arch": "tiny_resnet", "stem": "cifar-pool", "weights": "none", **fixed},
            "distill": {"student": "lite-xs", "method": "kd", "scan_batches": 2, "adapt_to_teacher": False, **fixed},
            "runtime": {"device": "cpu", "threads": 1, "precision": "fp32", "seed": 3},
        }
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A teacher and a student, trained without an interruption."""
    out = tmp_path_factory.mktemp("finished")
    for stage in (teacher, distill):
        (out / stage.__name__).mkdir()
        stage.run(config, {"teacher": out / teacher.__name__}, out / stage.__name__)
    return out


@pytest.mark.parametrize("stage", [teacher, distill])
def test_an_interrupted_training_ends_with_the_same_weights(stage, config, finished, tmp_path, monkeypatch):
    epoch = Batches.epoch

    def interrupted(self, number, *part):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number, *part)

    inputs = {"teacher": finished / teacher.__name__}
    monkeypatch.setattr(Batches, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, inputs, tmp_path)
    monkeypatch.setattr(Batches, "epoch", epoch)
    stage.run(config, inputs, tmp_path)
    (whole,) = (finished / stage.__name__).glob("*.safetensors")
    assert (tmp_path / whole.name).read_bytes() == whole.read_bytes()


def test_teacher_and_student_see_the_same_images_and_nothing_is_cached(config, finished, tmp_path, monkeypatch):
    seen = {"teacher": [], "student": []}

    def note(kind, who):
        forward = getattr(kind, "forward" if who == "teacher" else "features")

        def noted(self, pixels):
            if who == "teacher" or self.training:
                seen[who].append(pixels)
            return forward(self, pixels)

        monkeypatch.setattr(kind, "forward" if who == "teacher" else "features", noted)

    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    note(Teacher, "teacher")
    note(Student, "student")
    metrics = distill.run(config, {"teacher": finished / teacher.__name__}, tmp_path)
    trained = [pixels for pixels in seen["student"] if any(torch.equal(pixels, other) for other in seen["teacher"])]
    assert len(trained) >= 3 * 6  # every step of three epochs; batch norms are refreshed without the teacher
    assert metrics["logits_computed"] == 3 * 6 * 16
    assert not list(tmp_path.rglob("*.logits"))


def test_flips_without_augmentation_are_refused_and_not_chosen(folder_data, tmp_path):
    for option in ("--flip", "--teacher-flip"):
        level = option.replace("flip", "augment")
        result = invoke("run-all", "--data", folder_data, "--out", tmp_path / "run", level, "none", option)
        assert result.exit_code == 2
        assert f"{level} none mirrors no images" in " ".join(result.stderr.split())
    with pytest.raises(InputError, match="--augment strong mixes images: leave out --mix"):
        build_config({"distill": {"augment": "strong", "mix": 0.5}})
    with pytest.raises(InputError, match="--augment none mirrors no images"):
        build_config({"distill": {"augment": "none", "flip": True}})
    split = batches("none").split
    settings = build_config({"distill": {"augment": "none"}}).distill
    assert fit_to_images(settings, split, "distill", False).flip is False

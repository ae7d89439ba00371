import dataclasses

import numpy as np
import pytest

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.pipeline.data.mirroring import mirrored_keep_class
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.training.length import batch_size, epochs, fit_to_images
from kdedge.pipeline.training.options import TeacherConfig


def test_small_sets_get_more_epochs_in_smaller_batches_and_cifar_10_the_numbers_that_were_measured():
    assert [epochs(images, 20) for images in (1_000, 5_000, 45_000, 1_000_000, 10**9)] == [71, 42, 20, 7, 1]
    sizes = {50: 32, 1_000: 32, 3_199: 32, 3_200: 64, 6_399: 64, 6_400: 128, 10**6: 128}
    assert {images: batch_size(images, (32, 32, 3)) for images in sizes} == sizes


def test_a_batch_of_large_images_is_limited_by_its_pixels():
    sizes = {16: 128, 128: 128, 129: 64, 224: 32, 256: 32, 384: 8, 512: 8}
    assert {size: batch_size(10**6, (size, size, 3)) for size in sizes} == sizes
    assert batch_size(22, (512, 512, 3)) == 8
    assert max(size**2 * batch_size(10**6, (size, size, 3)) for size in range(16, 513)) <= 2**21


def strokes(count, *, mirrored):
    """Images of two classes that are each other's mirror image, or of two that are their own."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = rng.integers(0, 60, (count, 24, 24, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        if mirrored:
            image[4:20, 4 : 8 if label else 24] += 150 * np.uint8(1) if label else np.uint8(0)
            image[4:20, 16:20] += np.uint8(0 if label else 150)
        else:
            image[4 : 8 if label else 20, 4:20] += np.uint8(150)
    return Split(images, labels)


def test_images_are_mirrored_only_where_that_keeps_their_class():
    assert mirrored_keep_class(strokes(200, mirrored=False))
    assert not mirrored_keep_class(strokes(200, mirrored=True))
    assert not mirrored_keep_class(strokes(60, mirrored=True))
    rng = np.random.default_rng(0)
    noise = Split(rng.integers(0, 256, (300, 16, 16, 3), dtype=np.uint8), rng.integers(0, 3, 300))
    assert mirrored_keep_class(noise)
    assert mirrored_keep_class(Split(noise.images[:2], noise.labels[:2]))


def test_frames_of_a_scene_do_not_make_its_mirror_image_look_like_another_class():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 150, (80, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    labels = np.arange(80) % 2
    scenes[labels == 1, :8] += 40
    frames = scenes.repeat(5, 0) + rng.integers(0, 4, (400, 16, 16, 3))
    assert mirrored_keep_class(Split(frames.astype(np.uint8), labels.repeat(5)))


@pytest.mark.parametrize("settings", [TeacherConfig(batch_size=1), DistillConfig(batch_size=1)])
def test_a_step_of_one_image_is_refused(settings):
    with pytest.raises(InputError, match="a step with 1 image per process has no variance for batch norms"):
        fit_to_images(settings, strokes(30, mirrored=False), "training", False)


def test_what_is_given_stays_and_the_rest_follows_from_the_images():
    train = strokes(1_000, mirrored=True)
    settings = fit_to_images(DistillConfig(), train, "distill", False)
    assert (settings.epochs, settings.batch_size, settings.flip) == (71, 32, False)
    assert settings.lr == pytest.approx(0.1 * 32 / 128)
    given = dataclasses.replace(TeacherConfig(), epochs=3, batch_size=100, lr=0.05, flip=True)
    assert fit_to_images(given, train, "teacher", False) == given
    assert fit_to_images(TeacherConfig(), train, "teacher", False).epochs == 25

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdedge.pipeline.training.augmentations import augment, blank_squares, choose_augmentations, mirrored


def test_an_augmentation_depends_only_on_epoch_and_index():
    places = np.arange(1000)
    once = choose_augmentations(places, epoch=2, shift=2, flip=True)
    # The same image in another place of another batch looks the same.
    assert (choose_augmentations(places[[7, 3]], epoch=2, shift=2, flip=True) == once[[7, 3]]).all()
    assert (choose_augmentations(places, epoch=3, shift=2, flip=True) == once).mean() < 0.1
    assert set(once) == set(range(50))
    assert set(choose_augmentations(places, epoch=2, shift=2, flip=False)) == set(range(25))
    assert set(choose_augmentations(places, epoch=2, shift=0, flip=False)) == {0}


def test_the_augmentations_are_those_of_earlier_versions():
    # Checkpoints count on them: another hash needs another CHECKPOINT_VERSION.
    chosen = {
        epoch: choose_augmentations(np.array([0, 1, 2, 44999]), epoch=epoch, shift=2, flip=True).tolist()
        for epoch in (0, 1, 19)
    }
    assert chosen == {0: [0, 4, 48, 17], 1: [34, 45, 43, 31], 19: [11, 23, 11, 48]}


@pytest.mark.parametrize(("flip", "count"), [(True, 18), (False, 9)])
def test_an_image_repeats_an_augmentation_only_after_it_had_all(flip, count):
    images = np.arange(100)
    rounds = [
        np.stack([choose_augmentations(images, epoch=first + epoch, shift=1, flip=flip) for epoch in range(count)])
        for first in (0, count)
    ]
    for chosen in rounds:
        assert (np.sort(chosen, axis=0) == np.arange(count)[:, None]).all()
    assert (rounds[0] == rounds[1]).mean() == pytest.approx(1 / count, abs=0.05)
    assert len({tuple(order) for order in rounds[0].T}) == 100


def test_a_view_is_the_image_flipped_or_not_and_shifted_over_black():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (200, 8, 8, 3), dtype=np.uint8))
    seen = set()
    chosen = choose_augmentations(np.arange(200), epoch=0, shift=1, flip=True)
    for image, view, number in zip(pixels, augment(pixels, chosen, shift=1), chosen, strict=True):
        padded = functional.pad(image, (0, 0, 1, 1, 1, 1))
        flipped = functional.pad(image.flip(1), (0, 0, 1, 1, 1, 1))
        matches = [
            (flip, dy, dx)
            for flip, source in ((0, padded), (1, flipped))
            for dy in range(3)
            for dx in range(3)
            if torch.equal(view, source[dy : dy + 8, dx : dx + 8])
        ]
        assert len(matches) == 1
        flip, dy, dx = matches[0]
        column = 2 - dx if flip else dx  # the image is shifted, then flipped
        assert number == (flip * 3 + dy) * 3 + column
        seen.add(matches[0])
    assert len(seen) == 18  # both flips times nine shifts


def test_views_are_evenly_spread():
    pixels = torch.ones(5000, 1, 1, 3, dtype=torch.uint8)
    shifted_in = augment(pixels, choose_augmentations(np.arange(5000), epoch=1, shift=2, flip=True), shift=2)[
        :, 0, 0, 0
    ]
    # The one pixel stays in place in 1 of 25 shifts.
    assert shifted_in.sum().item() == pytest.approx(200, abs=50)


def test_a_square_of_every_image_is_blanked_with_its_centre_anywhere():
    pixels, numbers = torch.ones(3000, 2, 6, 6), np.arange(3000)
    out = blank_squares(pixels, numbers, epoch=3, side=3)
    assert (pixels == 1).all()
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(blank_squares(pixels[:2], numbers[[7, 3]], epoch=3, side=3), out[[7, 3]])
    assert not torch.equal(blank_squares(pixels, numbers, epoch=4, side=3), out)
    seen = set()
    for blank in (out[:, 0] == 0).numpy():
        rows, columns = np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))
        assert blank.sum() == len(rows) * len(columns)  # a rectangle without holes
        seen.add((rows[0], len(rows), columns[0], len(columns)))
    # Centres 0 to 5: at 0 and 5 the border cuts a row off.
    spans = [(0, 2), (0, 3), (1, 3), (2, 3), (3, 3), (4, 2)]
    assert seen == {(*rows, *columns) for rows in spans for columns in spans}
    counts = (out[:, 0] == 0).float().mean(0)
    assert counts[2:4, 2:4].numpy() == pytest.approx(np.full((2, 2), 9 / 36), abs=0.04)


def test_no_side_blanks_nothing():
    pixels = torch.ones(2, 3, 4, 4)
    assert torch.equal(blank_squares(pixels, np.arange(2), epoch=0, side=0), pixels)


def test_the_mirror_image_of_an_augmented_image_has_the_number_of_the_other_flip():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (18, 8, 8, 3), dtype=np.uint8))
    chosen = np.arange(18)
    others = mirrored(5 * 18 + chosen, 1)
    assert (others // 18 == 5).all()
    assert torch.equal(augment(pixels, others % 18, shift=1), augment(pixels, chosen, shift=1).flip(2))
    assert (mirrored(others, 1) == 5 * 18 + chosen).all()
    assert mirrored(np.array([-1]), 1) == -1

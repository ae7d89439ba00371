"""Copies: hashes, pairs, groups."""

import numpy as np
import pytest

from kdedge.pipeline.data.duplicates import dhash, find_copies, near_pairs, same, union


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 18, 3)).astype(np.uint8)


def test_dhash_marks_where_it_gets_brighter() -> None:
    ramp = np.broadcast_to(np.arange(0, 180, 10, np.uint8)[:, None], (16, 18, 3))
    assert dhash(np.stack([ramp, ramp[:, ::-1]])).tolist() == [2**64 - 1, 0]
    half = ramp.copy()
    half[8:] = 100
    assert int(np.bitwise_count(dhash(half[None]))[0]) == 32


@pytest.mark.parametrize("count", [3, 200])
def test_near_pairs_are_noisy_copies_and_nothing_else(count: int) -> None:
    images = noise(count)
    copy = np.clip(images[1].astype(int) + np.random.default_rng(1).integers(-6, 7, images[1].shape), 0, 255)
    assert near_pairs(np.concatenate([images, copy[None].astype(np.uint8)])) == [(1, count)]


def test_blank_images_and_other_colors_are_no_near_copies() -> None:
    image = noise(1)
    blank = np.full_like(image, 9)
    inverted_color = image[..., ::-1]  # the same brightness, so the same hash
    assert near_pairs(np.concatenate([image, blank, blank, inverted_color])) == []


def test_groups() -> None:
    assert same("abcab") == [[0, 3], [1, 4]]
    assert union([(4, 7), (1, 2), (7, 9), (0, 9)]) == [[0, 4, 7, 9], [1, 2]]


def test_copies_by_kind() -> None:
    labels, test = [0, 0, 1, 1, 0, 0], [False, False, False, True, True, True]
    copies = find_copies([[0, 1, 3], [4, 5]], labels, test)
    assert copies == {
        "test_copies": [(3, 0)],
        "in_two_classes": [(0, 3), (1, 3), (3, 0)],
        "in_training": [(1, 0)],
        "in_test": [(5, 4)],
    }

"""Drawing a few images from many: every class is there, and the same seed draws the same ones."""

import numpy as np

from kdedge.benchmarks.sampling import stratified_sample


def test_a_sample_is_stratified_and_seeded() -> None:
    labels = np.array([0] * 100 + [1] * 50 + [2] * 3)
    picked = stratified_sample(labels, 40, 5)
    counts = np.bincount(labels[picked])
    assert counts[2] == 3
    assert abs(counts[0] - counts[1]) <= 1
    assert len(set(picked)) == 40
    assert (picked == stratified_sample(labels, 40, 5)).all()
    assert (picked != stratified_sample(labels, 40, 6)).any()
    assert (picked[:10] == stratified_sample(labels, 10, 5)).all()
    assert len(stratified_sample(labels, 1000, 5)) == 153


def test_sorted_labels_leave_no_class_out() -> None:
    labels = np.repeat(np.arange(10), 100)
    assert np.bincount(labels[stratified_sample(labels, 200, 0)]).tolist() == [20] * 10

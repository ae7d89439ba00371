"""Wrong predictions: their counts, the most confident ones, and the figures of both."""

from typing import Any

import numpy as np
import pytest

from kdedge.benchmarks.accuracy import per_class_table
from kdedge.benchmarks.mistakes import confident_mistakes, confusions
from kdedge.benchmarks.report.figures import render
from kdedge.benchmarks.report.mistake_figures import grid_size, matrix_size, paint_confusions, paint_mistakes

NAMES = ("a", "b", "c")


def test_confusions_count_each_kind_of_wrong_prediction() -> None:
    labels, answers = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 1])
    assert confusions(labels, answers, NAMES) == [
        {"label": "a", "predicted": "b", "count": 2},
        {"label": "c", "predicted": "a", "count": 1},
        {"label": "c", "predicted": "b", "count": 1},
    ]
    assert confusions(labels, labels, NAMES) == []


def test_the_most_confident_wrong_predictions_come_first() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.05, 0.9, 0.05]]).astype(np.float32)
    rows = confident_mistakes(np.array([2, 1, 1, 0]), logits, NAMES)
    assert rows == [
        {"image": 3, "label": "a", "predicted": "b", "probability": 0.9},
        {"image": 0, "label": "c", "predicted": "a", "probability": 0.7},
        {"image": 2, "label": "b", "predicted": "c", "probability": 0.5},
    ]
    assert len(confident_mistakes(np.ones(50, np.int64), np.tile(logits[:1], (50, 1)), NAMES)) == 24


@pytest.mark.parametrize(("classes", "columns"), [(2, 2), (10, 10), (30, 21)])
def test_the_confusion_matrix_shows_the_share_of_each_class(classes: int, columns: int) -> None:
    names = [f"class number {index}" for index in range(classes)]
    labels = np.repeat(np.arange(classes), 10)
    answers = labels.copy()
    answers[-4:] = 0  # of the last class
    answers[5] = 1
    if classes > 21:
        answers[10:20] = [1] * 5 + [20, 21, 22, 23, 24]
    rows = per_class_table(labels, answers, answers, names)
    texts: dict[tuple[int, int], str] = {}

    def paint(axes: Any) -> None:
        paint_confusions(axes, rows, confusions(labels, answers, names), dict(zip(names, names, strict=True)))
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert len(shown) == columns
        assert len(set(shown)) == columns  # shortened names still differ
        texts.update({text.get_position(): text.get_text() for text in axes.texts})

    assert render(paint, matrix_size(classes)).startswith(b"\x89PNG")
    last = min(classes, 20) - 1
    assert (texts[last, last], texts[0, last]) == ("60", "40")
    assert (texts[0, 0], texts[1, 0]) == ("90", "10")
    if classes > 21:
        assert (texts[1, 1], columns - 1) == ("50", 20)


def test_a_class_called_others_has_one_column() -> None:
    names, labels = ("cat", "others"), np.array([0] * 10 + [1] * 10)
    answers = np.array([1] * 3 + [0] * 7 + [1] * 10)
    rows = per_class_table(labels, answers, answers, names)
    shown: list[str] = []

    def paint(axes: Any) -> None:
        paint_confusions(axes, rows, confusions(labels, answers, names), dict(zip(names, names, strict=True)))
        shown.extend(label.get_text() for label in axes.get_xticklabels())

    render(paint, matrix_size(2))
    assert shown == ["cat", "others"]


def test_the_grid_of_mistakes_has_prediction_probability_and_class() -> None:
    rows = [{"image": 0, "label": "cat", "predicted": "dog", "probability": 0.987}] * 8
    texts: list[str] = []

    def paint(axes: Any) -> None:
        paint_mistakes(axes, rows, np.zeros((8, 16, 16, 3), np.uint8), {"cat": "cat", "dog": "dog"})
        texts.extend(text.get_text() for text in axes.texts)
        assert len(axes.images) == 8

    assert render(paint, grid_size(8), "dark").startswith(b"\x89PNG")
    assert texts[:2] == ["dog, 99 %", "is cat"]

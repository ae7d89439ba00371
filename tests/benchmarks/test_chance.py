import numpy as np
import pytest

from kdedge.benchmarks.chance import check_learned, learned, majority_baseline
from kdedge.errors import StageError

NAMES = ("bad", "good")
MANY = np.repeat([0, 1], [80, 720])
"""Labels of 800 images in ratio 1:9."""


def right(labels: np.ndarray, *shares: float) -> np.ndarray:
    """Return a model's right answers: this share of each class."""
    result = np.zeros(len(labels), bool)
    for label, share in enumerate(shares):
        members = np.flatnonzero(labels == label)
        result[members[: round(share * len(members))]] = True
    return result


def test_the_most_frequent_class_is_the_baseline() -> None:
    baseline = majority_baseline(MANY)
    assert (baseline.label, baseline.top1_pct) == (1, 90.0)
    assert (baseline.right == (MANY == 1)).all()


@pytest.mark.parametrize(
    ("labels", "shares", "expected"),
    [
        (MANY, (0.0, 1.0), False),  # one answer for everything
        (MANY, (0.33, 0.33), False),
        (MANY, (0.05, 0.995), False),  # one image worse, four better
        (MANY, (0.5, 0.99), True),
        (np.repeat(np.arange(4), 200), (0.25,) * 4, False),  # at chance
        (np.repeat(np.arange(4), 200), (0.9, 0.9, 0.0, 0.0), True),
        (np.repeat([0, 1], 12), (0.5, 0.5), None),
        (np.repeat([0, 1], 12), (1.0, 1.0), True),
        (np.repeat([0, 1], [2, 798]), (1.0, 0.9), None),  # two images decide nothing
        (np.zeros(100, np.int64), (1.0,), None),
    ],
)
def test_whether_a_model_has_learned(labels: np.ndarray, shares: tuple[float, ...], expected: bool | None) -> None:
    assert learned(right(labels, *shares), labels) is expected


def test_a_model_that_learned_nothing_stops_the_stage() -> None:
    with pytest.raises(StageError) as caught:
        check_learned("the teacher", right(MANY, 0.0, 1.0), MANY, NAMES, "train for longer: --teacher-epochs 20")
    assert "the teacher has learned nothing" in str(caught.value)
    assert "90.00 % of 800 validation images, no better than always predicting `good` (90.00 %)" in str(caught.value)
    assert caught.value.hint == "train for longer: --teacher-epochs 20"


def test_too_few_images_only_warn(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.repeat([0, 1], 12)
    check_learned("the student", right(labels, 0.5, 0.5), labels, NAMES, "")
    assert "too few to show that it is better than always predicting `bad` (50.00 %)" in capsys.readouterr().err


def test_a_good_model_goes_through_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    check_learned("the student", right(MANY, 0.9, 1.0), MANY, NAMES, "")
    assert capsys.readouterr().err == ""


def test_a_model_that_finds_some_of_a_rare_class_has_learned_something():
    labels = np.repeat([0, 1], [980, 20])
    answers = labels.copy()
    answers[980:988] = 0  # 12 of 20 found
    answers[:14] = 1  # at the price of 14 false alarms: top-1 is below that of the constant answer
    assert (answers == labels).mean() < 0.98
    assert learned(answers == labels, labels)
    rng = np.random.default_rng(0)
    false_alarms = sum(bool(learned(rng.permutation(answers) == labels, labels)) for _ in range(400))
    assert false_alarms < 0.06 * 400

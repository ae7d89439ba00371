import numpy as np
import pytest

from kdedge.benchmarks.balanced import balanced_loss
from kdedge.benchmarks.gate import images_to_pass, judge, tango_interval


def outcomes(n: int, only_fp32: int, only_int8: int) -> tuple[np.ndarray, np.ndarray]:
    """Return right/wrong of both models with so many discordant images; the rest are right in both."""
    fp32, int8 = np.ones(n, bool), np.ones(n, bool)
    int8[:only_fp32] = False
    fp32[only_fp32 : only_fp32 + only_int8] = False
    return fp32, int8


def test_passed() -> None:
    gate = judge(*outcomes(10_000, 60, 50), 0.5)
    assert (gate["verdict"], gate["passed"], gate["images_to_decide"]) == ("passed", True, None)
    assert gate["loss_pp"] == pytest.approx(0.1)
    assert gate["loss_lower95_pp"] < 0.1 < gate["loss_upper95_pp"] < 0.5
    assert (gate["fp32_only_right"], gate["int8_only_right"]) == (60, 50)
    assert "loses 0.10 pp on 10,000 test images" in gate["reason"]
    assert "less than the limit of 0.5 pp" in gate["reason"]


def test_failed() -> None:
    gate = judge(*outcomes(10_000, 200, 50), 0.5)
    assert (gate["verdict"], gate["passed"]) == ("failed", False)
    assert gate["loss_lower95_pp"] >= 0.5
    assert "not less than the limit" in gate["reason"]


@pytest.mark.parametrize(("only_fp32", "only_int8"), [(5, 5), (8, 5), (12, 2)])
def test_undecided_names_the_images_that_decide_where_they_are_plausible(only_fp32: int, only_int8: int) -> None:
    n, limit = 1000, 0.005
    gate = judge(*outcomes(n, only_fp32, only_int8), 100 * limit)
    assert (gate["verdict"], gate["passed"]) == ("undecided", False)
    needed = gate["images_to_decide"]
    assert needed > n
    assert (f"{needed:,} images" in gate["reason"]) == (needed <= 10 * n)

    def decides(images: int) -> bool:
        lower, upper = tango_interval(images, only_fp32 * images / n, only_int8 * images / n)
        return upper < limit or lower >= limit

    assert decides(needed)
    assert not decides(needed - 1)


def test_a_loss_equal_to_the_limit_is_never_decided() -> None:
    gate = judge(*outcomes(1000, 10, 5), 0.5)
    assert (gate["verdict"], gate["images_to_decide"]) == ("undecided", None)
    assert "at the same rates" not in gate["reason"]


def test_identical_models_pass_with_enough_images_only() -> None:
    assert judge(*outcomes(10_000, 0, 0), 0.5)["verdict"] == "passed"
    small = judge(*outcomes(200, 0, 0), 0.5)
    assert small["verdict"] == "undecided"
    assert small["images_to_decide"] == 765
    assert "neither loses nor gains" in small["reason"]


def test_a_gain_is_called_a_gain() -> None:
    gate = judge(*outcomes(10_000, 20, 60), 0.5)
    assert gate["passed"]
    assert gate["loss_pp"] == pytest.approx(-0.4)
    assert "gains 0.40 pp" in gate["reason"]


def test_unpaired_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two \[N\] arrays"):
        judge(np.ones(3, bool), np.ones(4, bool), 0.5)


def test_an_undecided_loss_says_what_these_images_can_prove() -> None:
    gate = judge(*outcomes(540, 3, 2), 0.5)
    assert gate["verdict"] == "undecided"
    provable = gate["provable_pp"]
    assert (
        f"Provable with these 540 images: a loss of less than {provable:g} pp (`--limit-pp {provable:g}`)"
        in gate["reason"]
    )
    assert judge(*outcomes(540, 3, 2), provable)["passed"]
    assert not judge(*outcomes(540, 3, 2), round(provable - 0.1, 1))["passed"]
    assert judge(*outcomes(10_000, 60, 50), 0.5)["provable_pp"] is None


def test_a_shown_gain_is_a_fault() -> None:
    """FP32 23.75 %, INT8 33.25 % of noise: 7 answers lost, 83 won."""
    gate = judge(*outcomes(800, 7, 83), 0.5)
    assert (gate["verdict"], gate["passed"], gate["cause"]) == ("failed", False, "gain")
    assert "INT8 does not follow FP32: INT8 changes 11.2 % of the predictions" in gate["reason"]
    # Symmetric in what it refuses: the same answers the other way round are a loss.
    assert judge(*outcomes(800, 83, 7), 0.5)["cause"] == "loss"


@pytest.mark.parametrize(
    ("changed", "verdict", "cause"),
    [(51, "passed", None), (900, "passed", None), (1000, "undecided", "changed"), (1200, "failed", "changed")],
)
def test_many_changed_answers_are_a_fault_whatever_the_accuracy(changed: int, verdict: str, cause: str | None) -> None:
    gate = judge(*outcomes(10_000, 23, 16), 0.5, changed=changed)
    assert (gate["verdict"], gate["cause"], gate["changed_answers"]) == (verdict, cause, changed)
    if cause:
        assert f"changes {changed / 100:.1f} % of the predictions, the limit allows 10 %" in gate["reason"]


def constant_answer(n: int, of_majority: int) -> tuple[np.ndarray, np.ndarray]:
    """Return right answers of a model that always gives class 1, and the labels."""
    labels = np.zeros(n, np.int64)
    labels[:of_majority] = 1
    return labels == 1, labels


@pytest.mark.parametrize(("n", "of_majority"), [(800, 720), (10_000, 9_839), (10_000, 1_000)])
def test_a_model_that_learned_nothing_fails(n: int, of_majority: int) -> None:
    right, labels = constant_answer(n, of_majority)
    if of_majority == 1_000:
        labels[1_000:] = 2 + np.arange(9_000) % 9
    names = [f"class {index}" for index in range(11)]
    gate = judge(right, right, 0.5, labels=labels, class_names=names)
    assert (gate["verdict"], gate["passed"], gate["cause"]) == ("failed", False, "learned")
    assert gate["reason"].startswith("The model is not better than always predicting `class 1`.")


def test_too_few_images_to_show_that_anything_was_learned_pass_nothing() -> None:
    right, labels = constant_answer(24, 12)
    gate = judge(right, right, 20, labels=labels, class_names=("bad", "good"))
    assert (gate["verdict"], gate["cause"]) == ("undecided", "learned")
    assert "too few to show" in gate["reason"]
    everything = np.ones(24, bool)
    assert judge(everything, everything, 20, labels=labels, class_names=("bad", "good"))["passed"]


@pytest.mark.parametrize("power", [0.8, 0.95])
def test_planned_images_pass_about_as_often_as_stated(power: float) -> None:
    discordance, limit_pp = 0.01, 0.5
    images = images_to_pass(limit_pp, discordance, power)
    assert images
    rng = np.random.default_rng(0)
    draws = rng.multinomial(images, [discordance / 2, discordance / 2, 1 - discordance], 400)
    passed = [judge(*outcomes(images, only_fp32, only_int8), limit_pp)["passed"] for only_fp32, only_int8, _ in draws]
    assert np.mean(passed) == pytest.approx(power, abs=0.05)


def test_planned_images_are_the_fewest_that_can_pass() -> None:
    assert images_to_pass(0.5, 0, 0.8) == 765
    assert images_to_pass(0.5, 0.1, 0.8) is None  # as many changed answers are refused


def test_the_balanced_loss_is_the_mean_loss_of_the_classes() -> None:
    labels = np.repeat([0, 1, 3], [1000, 100, 10])
    fp32, int8 = np.ones(1110, bool), np.ones(1110, bool)
    int8[:10], int8[1000:1005], fp32[1105:1106] = False, False, False
    loss, lower, upper = balanced_loss(fp32, int8, labels)
    assert loss == pytest.approx((0.01 + 0.05 - 0.1) / 3)
    assert lower < loss < upper
    assert balanced_loss(fp32, int8, labels) == (loss, lower, upper)


def test_the_balanced_interval_of_equal_classes_is_about_tangos() -> None:
    labels = np.arange(4000) % 4
    fp32, int8 = outcomes(4000, 60, 40)
    tango = tango_interval(4000, 60, 40)
    assert balanced_loss(fp32, int8, labels)[1:] == pytest.approx(tango, abs=5e-4)


def test_no_changed_answer_proves_no_more_of_balanced_accuracy_than_of_top1() -> None:
    labels = np.arange(764) % 4
    assert judge(*outcomes(764, 0, 0), 0.5, labels=labels, class_names="abcd", balanced=True)["verdict"] == "undecided"
    labels = np.arange(768) % 4
    assert judge(*outcomes(768, 0, 0), 0.5, labels=labels, class_names="abcd", balanced=True)["verdict"] == "passed"
    skewed = np.repeat([0, 1], [10_000, 20])
    assert judge(*outcomes(10_020, 0, 0), 0.5, labels=skewed, class_names="ab", balanced=True)["verdict"] == "undecided"


def test_the_balanced_interval_holds_where_a_rare_class_hides_the_loss() -> None:
    sizes, lost, gained = np.array([2000, 500, 50, 20]), np.array([0.01, 0.01, 0.05, 0.05]), 0.005
    labels, rng = np.repeat(np.arange(4), sizes), np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        draw = rng.random(len(labels))
        only_fp32 = draw < lost[labels]
        only_int8 = (draw >= lost[labels]) & (draw < lost[labels] + gained)
        missed += balanced_loss(~only_int8, ~only_fp32, labels)[2] < (lost - gained).mean()
    assert missed <= 10  # 5 expected

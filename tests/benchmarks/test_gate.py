import numpy as np
import pytest

from benchmarks.gate import judge, tango_interval


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
def test_undecided_names_the_images_that_decide(only_fp32: int, only_int8: int) -> None:
    n, limit = 1000, 0.005
    gate = judge(*outcomes(n, only_fp32, only_int8), 100 * limit)
    assert (gate["verdict"], gate["passed"]) == ("undecided", False)
    needed = gate["images_to_decide"]
    assert needed > n
    assert f"{needed:,} images" in gate["reason"]

    def decides(images: int) -> bool:
        lower, upper = tango_interval(images, only_fp32 * images / n, only_int8 * images / n)
        return upper < limit or lower >= limit

    assert decides(needed)
    assert not decides(needed - 1)


def test_a_loss_equal_to_the_limit_is_never_decided() -> None:
    gate = judge(*outcomes(1000, 10, 5), 0.5)
    assert (gate["verdict"], gate["images_to_decide"]) == ("undecided", None)
    assert "no number of images would decide" in gate["reason"]


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

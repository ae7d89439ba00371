"""Intervals for test images in groups: design effect, quantiles, coverage."""

import numpy as np
import pytest

from kdedge.benchmarks.gate import judge
from kdedge.benchmarks.grouped import INDEPENDENT, Sampling, _student, sampling_of
from kdedge.benchmarks.interval import tango_interval, wilson_interval_pct


def table(n: int, only_fp32: int = 0, only_int8: int = 0, both_wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return right/wrong of both models: the discordant images first, then those that both predict wrongly."""
    fp32, int8 = np.ones(n, bool), np.ones(n, bool)
    int8[:only_fp32] = False
    fp32[only_fp32 : only_fp32 + only_int8] = False
    fp32[only_fp32 + only_int8 :][:both_wrong] = int8[only_fp32 + only_int8 :][:both_wrong] = False
    return fp32, int8


def names(groups: np.ndarray) -> np.ndarray:
    return np.char.add("g", groups.astype(str))


@pytest.mark.parametrize(("freedom", "quantile"), [(4, 2.7764), (7, 2.3646), (19, 2.0930), (139, 1.9772)])
def test_students_quantiles_are_those_of_the_table(freedom: float, quantile: float) -> None:
    assert _student(freedom) == pytest.approx(quantile, abs=1e-3)


def test_images_without_groups_are_independent() -> None:
    fp32, int8 = table(500, 7, 4, 40)
    assert sampling_of(fp32, int8, None) is INDEPENDENT
    assert INDEPENDENT.tango(500, 7, 4) == tango_interval(500, 7, 4)
    assert INDEPENDENT.wilson_pct(449, 500) == wilson_interval_pct(449, 500)
    assert sampling_of(fp32, int8, np.full(500, "")) is INDEPENDENT
    assert sampling_of(fp32, int8, names(np.arange(500))) is INDEPENDENT
    pairs = sampling_of(fp32, int8, names(np.random.default_rng(0).permutation(500) // 2))
    assert (pairs.groups, pairs.design_effect) == (250, pytest.approx(1, abs=0.1))
    assert pairs.tango(500, 7, 4) == pytest.approx(tango_interval(500, 7, 4), abs=1e-3)


def test_copies_of_an_image_count_as_one() -> None:
    fp32, int8 = (np.repeat(right, 10) for right in table(100, 5, 3, 20))
    found = sampling_of(fp32, int8, names(np.arange(1000) // 10))
    assert found.groups == 100
    assert found.design_effect == pytest.approx(10, rel=0.1)
    assert found.tango(1000, 50, 30) == pytest.approx(tango_interval(100, 5, 3), abs=0.01)
    assert found.wilson_pct(750, 1000) == pytest.approx(wilson_interval_pct(75, 100), abs=0.5)


def test_groups_without_a_difference_prove_as_little_as_they_are() -> None:
    fp32, int8 = table(2000)
    found = sampling_of(fp32, int8, names(np.arange(2000) // 100))
    assert found == Sampling(20, 20.0, 100.0)
    assert found.tango(2000, 0, 0)[1] > tango_interval(20, 0, 0)[1]


def test_groups_that_lose_together_widen_the_interval_of_the_loss() -> None:
    fp32, int8 = table(2000, 20, 0)
    scattered = names(np.random.default_rng(0).permutation(2000) // 50)
    together = names(np.arange(2000) // 50)
    few, many = (sampling_of(fp32, int8, groups).tango(2000, 20, 0) for groups in (scattered, together))
    independent = tango_interval(2000, 20, 0)
    assert many[0] < few[0] <= independent[0]
    assert many[1] > few[1] >= independent[1]


@pytest.mark.parametrize("seed", range(20))
def test_no_interval_is_narrower_than_that_of_independent_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(50, 800))
    fp32, int8 = (rng.random((2, n)) < rng.random()).astype(bool)
    found = sampling_of(fp32, int8, names(rng.integers(0, rng.integers(2, 60), n)))
    only_fp32, only_int8 = int((fp32 & ~int8).sum()), int((int8 & ~fp32).sum())
    for wide, narrow in (
        (found.tango(n, only_fp32, only_int8), tango_interval(n, only_fp32, only_int8)),
        (found.wilson_pct(int(fp32.sum()), n), wilson_interval_pct(int(fp32.sum()), n)),
    ):
        assert wide[0] <= narrow[0]
        assert wide[1] >= narrow[1]
    assert found.stretch >= 1


def test_the_interval_holds_where_groups_lose_together() -> None:
    rng, cells, sizes = np.random.default_rng(0), np.array([0.895, 0.0075, 0.0025, 0.095]), 30
    groups = names(np.arange(20 * sizes) // sizes)
    missed = independent = 0
    for _ in range(150):
        kinds = np.concatenate([rng.choice(4, sizes, p=shares) for shares in rng.dirichlet(cells * 4, 20)])
        fp32, int8 = kinds <= 1, kinds % 2 == 0
        counts = len(groups), int((kinds == 1).sum()), int((kinds == 2).sum())
        missed += sampling_of(fp32, int8, groups).tango(*counts)[1] < 0.005
        independent += tango_interval(*counts)[1] < 0.005
    assert missed <= 4  # at most 3.75 expected
    assert independent >= 15


def test_the_gate_names_its_groups() -> None:
    fp32, int8 = table(10_000, 30, 25, 900)
    groups = names(np.random.default_rng(0).permutation(10_000) // 50)
    gate = judge(fp32, int8, 0.5, groups=groups)
    assert (gate["verdict"], gate["groups"]) == ("passed", 200)
    assert gate["independent_images"] == round(10_000 / sampling_of(fp32, int8, groups).design_effect)
    assert f"of 200 groups, which count as {gate['independent_images']:,} independent images (95 %" in gate["reason"]
    ungrouped = judge(fp32, int8, 0.5)
    assert gate["loss_upper95_pp"] > ungrouped["loss_upper95_pp"]
    assert ungrouped["groups"] is None
    together = judge(fp32, int8, 0.5, groups=names(np.arange(10_000) // 50))
    assert (together["verdict"], together["cause"], together["images_to_decide"]) == ("undecided", "loss", None)


def test_balanced_accuracy_respects_groups() -> None:
    fp32, int8 = table(4000, 20, 10, 400)
    labels, groups = np.arange(4000) % 4, names(np.arange(4000) // 100)
    of = {"labels": labels, "class_names": "abcd", "balanced": True}
    narrow, wide = judge(fp32, int8, 0.5, **of), judge(fp32, int8, 0.5, **of, groups=groups)
    assert wide["loss_pp"] == narrow["loss_pp"]
    assert wide["loss_upper95_pp"] > narrow["loss_upper95_pp"]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([2500] * 4, "4 groups cannot show how much INT8 loses on other groups: at least 5 of equal size"),
        ([10_000], "The interval is for new images of this group. 1 group cannot show"),
        ([9_000, *[100] * 10], "11 groups, which count as 1.2 of equal size, cannot show"),
    ],
)
def test_too_few_groups_pass_nothing(sizes: list[int], words: str) -> None:
    groups = names(np.repeat(np.arange(len(sizes)), sizes))
    gate = judge(*table(10_000, 0, 0, 900), 0.5, groups=groups)
    assert (gate["verdict"], gate["cause"], gate["design_effect"]) == ("undecided", "groups", None)
    assert words in gate["reason"]
    assert judge(*table(10_000, 300, 0), 0.5, groups=groups)["verdict"] == "failed"

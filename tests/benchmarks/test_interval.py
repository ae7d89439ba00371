import itertools
import math

import pytest

from kdedge.benchmarks.interval import tango_interval, wilson_interval_pct


@pytest.mark.parametrize(
    ("table", "published", "digits"),
    [
        # Fagerland, Lydersen & Laake (2014), Statistics in Medicine 33: airway hyper-responsiveness (Bentur 2009).
        ((21, 1, 7), [-0.517, -0.026], 3),
        # The same: complete response (Cavo 2012); also in the tests of the R package contingencytables.
        ((161, 6, 16), [-0.1240, -0.0054], 4),
    ],
)
def test_published_intervals(table: tuple[int, int, int], published: list[float], digits: int) -> None:
    assert [round(end, digits) for end in tango_interval(*table)] == published


def profile_score(n: int, b: int, c: int, delta: float) -> float:
    """Return the score statistic with the nuisance parameter found by maximising the likelihood numerically."""

    def loglik(q: float) -> float:
        terms = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
        return sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(120):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loglik(left) < loglik(right):
            low = left
        else:
            high = right
    q = (low + high) / 2
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta * delta))


@pytest.mark.parametrize(
    ("n", "b", "c"), [(160, 40, 20), (44, 0, 1), (50, 12, 2), (30, 0, 0), (30, 5, 0), (10_000, 110, 90), (10_000, 3, 0)]
)
def test_agrees_with_numeric_inversion_of_the_score_test(n: int, b: int, c: int) -> None:
    lower, upper = tango_interval(n, b, c)
    z = 1.959963984540054
    assert profile_score(n, b, c, lower) == pytest.approx(z, abs=2e-4)
    assert profile_score(n, b, c, upper) == pytest.approx(-z, abs=2e-4)


def test_swapping_the_models_mirrors_the_interval() -> None:
    for n, b, c in ((50, 12, 2), (10_000, 30, 0), (7, 0, 0), (9, 9, 0)):
        lower, upper = tango_interval(n, b, c)
        assert tango_interval(n, c, b) == pytest.approx((-upper, -lower), abs=1e-12)


def test_no_discordant_image_still_gives_a_width() -> None:
    lower, upper = tango_interval(1000, 0, 0)
    z2 = 1.959963984540054**2
    assert upper == pytest.approx(z2 / (1000 + z2), rel=1e-9)
    assert lower == pytest.approx(-upper)


def test_all_discordant_one_way() -> None:
    lower, upper = tango_interval(20, 20, 0)
    assert upper == 1.0
    assert 0.6 < lower < 1


def test_coverage_is_close_to_nominal() -> None:
    """Coverage by enumeration: the probability of all tables whose interval holds the true difference."""
    n, p_a, p_b = 400, 0.03, 0.015
    logs = [math.log(p) for p in (p_a, p_b, 1 - p_a - p_b)]
    total = coverage = 0.0
    for a, b in itertools.product(range(40), range(30)):
        counts = (a, b, n - a - b)
        log_ways = math.lgamma(n + 1) - sum(math.lgamma(count + 1) for count in counts)
        probability = math.exp(log_ways + sum(count * log for count, log in zip(counts, logs, strict=True)))
        lower, upper = tango_interval(n, a, b)
        total += probability
        coverage += probability * (lower <= p_a - p_b <= upper)
    assert total == pytest.approx(1, abs=1e-6)
    assert coverage == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(
    ("n", "a", "b", "confidence"), [(0, 0, 0, 0.95), (10, -1, 0, 0.95), (10, 6, 5, 0.95), (10, 1, 1, 1)]
)
def test_impossible_tables_are_refused(n: int, a: int, b: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"paired table|confidence"):
        tango_interval(n, a, b, confidence)


def test_no_or_only_successes_end_exactly_at_the_border() -> None:
    for n in range(1, 100):
        assert str(wilson_interval_pct(0, n)[0]) == "0.0"  # not -0.0, which a table shows as -0.00
        assert wilson_interval_pct(n, n)[1] == 100

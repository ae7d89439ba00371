"""Score intervals: Tango's of a difference of paired proportions, Wilson's of one proportion.

Tango's interval keeps its coverage with few or no discordant pairs, where the Wald interval has zero width.

    >>> tango_interval(161, 6, 16)          # Fagerland et al. (2014): -0.1240 to -0.0054
    (-0.124..., -0.0054...)

Sources: T. Tango (1998), Statistics in Medicine 17, 891-908, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B;
M. W. Fagerland, S. Lydersen, P. Laake (2014), Statistics in Medicine 33, 2850-2875.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

__all__ = ["tango_interval", "wilson_interval_pct"]


def tango_interval(n: float, only_a: float, only_b: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Tango's two-sided score interval of p_a - p_b for paired proportions.

    Args:
        n: Number of pairs, greater than 0; may be fractional (`judge` extrapolates).
        only_a: Pairs in which only ``a`` succeeded, at least 0.
        only_b: Pairs in which only ``b`` succeeded, at least 0; ``only_a + only_b <= n``.
        confidence: Two-sided confidence, between 0 and 1.

    Returns:
        Lower and upper end as fractions in -1..1.

    Raises:
        ValueError: The counts or the confidence are out of range.
    """
    if not (n > 0 and only_a >= 0 and only_b >= 0 and only_a + only_b <= n * (1 + 1e-9)):
        raise ValueError(f"not a paired table: n={n}, only_a={only_a}, only_b={only_b}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate = (only_a - only_b) / n

    def score(delta: float) -> float:
        return _score(n, only_a, only_b, delta)

    return _crossing(score, z, -1.0, estimate), _crossing(score, -z, estimate, 1.0)


def wilson_interval_pct(right: float, n: float, confidence: float = 0.95) -> list[float]:
    """Return Wilson's score interval (1927) of ``right`` successes among ``n``, in percent: ``[lower, upper]``."""
    share = right / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [max(0.0, round(100 * (centre - half), 4)), round(100 * (centre + half), 4)]  # 0, not -0


def _score(n: float, only_a: float, only_b: float, delta: float) -> float:
    """Return the score statistic T(delta), standard normal if p_a - p_b = delta (Tango 1998, eq. 11 and 12).

    The nuisance parameter p_b-only is at its maximum-likelihood value under p_a - p_b = delta, the larger root
    of a quadratic.
    """
    a = 2 * n
    b = -only_a - only_b + (2 * n - only_a + only_b) * delta
    c = -only_b * delta * (1 - delta)
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    # The form without cancellation when b > 0.
    nuisance = (root - b) / (2 * a) if b <= 0 else -2 * c / (b + root)
    variance = n * (2 * nuisance + delta * (1 - delta))
    numerator = only_a - only_b - n * delta
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def _crossing(score: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Return where the decreasing ``score`` crosses ``level`` between ``low`` and ``high``, to the last bit."""
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        if score(middle) > level:
            low = middle
        else:
            high = middle

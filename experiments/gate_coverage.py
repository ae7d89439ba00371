"""Coverage of the gate's interval, and how often its verdict is wrong, computed exactly.

Only the numbers of discordant images decide the verdict: ``a`` images that only FP32 predicts correctly and ``b`` that
only INT8 predicts correctly are trinomial with n images. For every n, discordance (share of images on which exactly one
model is correct) and true loss, the script enumerates all pairs (a, b) with probability above 1e-12, computes the
gate's interval (`kdedge.benchmarks.gate.tango_interval`) for each, and sums the probabilities. It uses no random
numbers and no data. Wald's textbook interval is computed for comparison. Takes half a minute.

    python experiments/gate_coverage.py

Prints Markdown tables of ``Tango / Wald`` in percent, a row per n, a column per discordance: coverage of the true
loss, nominal 95; the probability of passing at a true loss of exactly the limit; of failing at a true loss just
below it (both nominal at most 2.5, and the largest over all losses on the wrong side); and the verdicts without a loss.
"""

import functools
import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.gate import tango_interval

IMAGES = (200, 500, 1000, 2000, 5000, 10_000)
DISCORDANCE_PCT = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LIMIT_PP = 0.5
LEAST_PROBABILITY = 1e-12

Interval = Callable[[int, int, int], tuple[float, float]]


def wald_interval(n: int, only_a: int, only_b: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wald's interval of p_a - p_b for paired proportions; arguments as for `tango_interval`."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    difference = (only_a - only_b) / n
    half = z * math.sqrt(max((only_a + only_b) / n - difference**2, 0.0) / n)
    return difference - half, difference + half


def trinomial(
    n: int, share_a: float, share_b: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Enumerate the counts of two of three outcomes in n draws.

    Args:
        n: Number of draws.
        share_a: Probability of the first outcome in one draw, 0..1.
        share_b: Probability of the second, 0..1; ``share_a + share_b < 1``.

    Returns:
        The pairs of counts ``a [K]``, ``b [K]`` whose probability is above `LEAST_PROBABILITY`, and it, ``[K]``.
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    ranges = []
    for share in (share_a, share_b):
        # Beyond ten standard deviations and forty counts every probability is far below the threshold.
        reach = 10 * math.sqrt(n * share) + 40 if share else 0
        ranges.append(np.arange(max(0, math.floor(n * share - reach)), min(n, math.ceil(n * share + reach)) + 1))
    a, b = (grid.ravel() for grid in np.meshgrid(*ranges, indexing="ij"))
    a, b = a[a + b <= n], b[a + b <= n]
    rest = n - a - b
    log_p = log_factorial[n] - log_factorial[a] - log_factorial[b] - log_factorial[rest]
    for count, share in ((a, share_a), (b, share_b), (rest, 1 - share_a - share_b)):
        if share:
            log_p = log_p + count * math.log(share)
    probability = np.exp(log_p)
    likely = probability > LEAST_PROBABILITY
    return a[likely], b[likely], probability[likely]


def verdict(lower: float, upper: float, limit: float) -> str:
    """Return the verdict of `kdedge.benchmarks.gate.judge` for an interval of the loss; a test compares the two."""
    return "passed" if upper < limit else "failed" if lower >= limit else "undecided"


def properties(interval: Interval, n: int, discordance: float, loss: float, limit: float) -> dict[str, float]:
    """Return the probabilities that the interval covers the true loss, and of every verdict.

    Args:
        interval: Takes n and the two discordant counts; returns the ends of the interval.
        n: Number of images.
        discordance: Share of images on which exactly one model is right, 0..1.
        loss: True loss as a share, at most ``discordance``.
        limit: The loss that the gate refuses, as a share.

    Returns:
        ``covered``, ``passed``, ``failed``, ``undecided``, each 0..1, and ``enumerated``, the probability of all
        counts that were looked at.
    """
    sums = dict.fromkeys(("covered", "passed", "failed", "undecided"), 0.0)
    # The two shares differ by the loss exactly: 0 stays 0 where the loss is all of the discordance.
    share_b = max((discordance - loss) / 2, 0.0)
    only_a, only_b, probability = trinomial(n, share_b + loss, share_b)
    for a, b, p in zip(only_a.tolist(), only_b.tolist(), probability.tolist(), strict=True):
        lower, upper = interval(n, a, b)
        sums["covered"] += p * (lower <= loss <= upper)
        sums[verdict(lower, upper, limit)] += p
    return {**sums, "enumerated": float(probability.sum())}


def table(title: str, cells: Mapping[tuple[int, float], str]) -> str:
    """Return a Markdown table of one cell per n (rows) and discordance (columns)."""
    lines = [f"\n{title}\n", "| n | " + " | ".join(f"{share:g} %" for share in DISCORDANCE_PCT) + " |"]
    lines.append("|---" * (len(DISCORDANCE_PCT) + 1) + "|")
    lines += [
        f"| {n:,} | " + " | ".join(cells.get((n, share), "–") for share in DISCORDANCE_PCT) + " |" for n in IMAGES
    ]
    return "\n".join(lines)


def main() -> None:
    """Compute everything and print the tables."""
    limit = LIMIT_PP / 100
    intervals: dict[str, Interval] = {"tango": functools.cache(tango_interval), "wald": wald_interval}
    found: dict[tuple[float, int, float], dict[str, dict[str, float]]] = {}
    for loss in (0.0, limit):
        for n in IMAGES:
            for share in DISCORDANCE_PCT:
                if loss <= share / 100:
                    found[loss, n, share] = {
                        name: properties(interval, n, share / 100, loss, limit) for name, interval in intervals.items()
                    }
    missed = max(1 - result["tango"]["enumerated"] for result in found.values())
    print(f"Exact up to the {missed:.0e} of probability that was not enumerated. Tango / Wald, percent.")
    for title, loss, key in (
        ("Coverage, true loss 0", 0.0, "covered"),
        (f"Coverage, true loss {LIMIT_PP:g} pp", limit, "covered"),
        (f"Wrongly passed: true loss {LIMIT_PP:g} pp, the limit", limit, "passed"),
        (f"Wrongly failed: true loss just below {LIMIT_PP:g} pp", limit, "failed"),
        ("Wrongly failed: true loss 0", 0.0, "failed"),
        ("Rightly passed: true loss 0 (the rest is undecided)", 0.0, "passed"),
    ):
        cells = {
            (n, share): " / ".join(f"{100 * result[name][key]:.2f}" for name in intervals)
            for (of, n, share), result in found.items()
            if of == loss
        }
        print(table(title, cells))


if __name__ == "__main__":
    main()

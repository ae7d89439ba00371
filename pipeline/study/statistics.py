"""Means over seeds, and differences to a control with a 95 % interval: paired by seed, Student t."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Difference", "paired_difference", "student_t_975"]


@dataclass(frozen=True)
class Difference:
    """A mean difference to the control.

    Attributes:
        mean: Mean over the seeds that both have, in the unit of the values.
        half_width: Half of the 95 % interval; None with one seed, where there is no spread to judge by.
        seeds: How many seeds.
    """

    mean: float
    half_width: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``not resolved`` (smaller than its interval) or ``one seed``.

        Accuracies are shares of images, so a few seeds can give the same difference by chance; an interval of no width
        resolves nothing.
        """
        if self.half_width is None:
            return "one seed"
        if abs(self.mean) <= self.half_width or not self.half_width:
            return "not resolved"
        return "better" if self.mean > 0 else "worse"


def paired_difference(values: Mapping[int, float], control: Mapping[int, float]) -> Difference | None:
    """Return the difference of two sets of values by seed (None: no seed has both)."""
    # Rounded, or equal differences of percentages would differ in their last bits and count as a narrow interval.
    differences = [round(value - control[seed], 9) for seed, value in values.items() if seed in control]
    if not differences:
        return None
    half_width = None
    if len(differences) > 1:
        spread = statistics.stdev(differences)
        half_width = student_t_975(len(differences) - 1) * spread / math.sqrt(len(differences))
    return Difference(statistics.fmean(differences), half_width, len(differences))


def student_t_975(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, to about six digits.

    The density is integrated by Simpson's rule and the integral inverted by bisection.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2

    def density(t: float) -> float:
        return math.exp(log_scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))

    def above_zero(t: float, steps: int = 1000) -> float:
        width = t / steps
        inner = sum((4 if index % 2 else 2) * density(index * width) for index in range(1, steps))
        return (density(0.0) + inner + density(t)) * width / 3

    low, high = 0.0, 13.0  # 12.71 with one degree of freedom
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if above_zero(middle) < 0.475 else (low, middle)
    return (low + high) / 2

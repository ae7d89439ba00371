"""Differences to a control with a 95 % interval: paired by seed, Student t."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Difference", "paired_difference", "student_t_975"]


@dataclass(frozen=True)
class Difference:
    """A mean difference to the control.

    Attributes:
        mean: Mean over the common seeds, in the unit of the values.
        half_width: Half of the 95 % interval; None with one seed.
        seeds: Number of common seeds.
    """

    mean: float
    half_width: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``not resolved`` (smaller than its interval) or ``one seed``.

        Accuracies are shares of images, so a few seeds can have the same difference by chance. An interval of width 0
        resolves nothing.
        """
        if self.half_width is None:
            return "one seed"
        if abs(self.mean) <= self.half_width or not self.half_width:
            return "not resolved"
        return "better" if self.mean > 0 else "worse"


def paired_difference(values: Mapping[int, float], control: Mapping[int, float]) -> Difference | None:
    """Return the difference of two sets of values by seed (None: no common seed)."""
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
    """Return the 97.5 % quantile of Student's t distribution with ``freedom`` degrees of freedom, at least 1."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))

"""Intervals for test images in groups (patients, recordings), whose images resemble each other.

Images of a group are not independent, so Tango's and Wilson's intervals would be too narrow. `sampling_of` estimates
the design effect: the number of images that count as one. The intervals then use N / design effect images and Student's
t quantile, whose degrees of freedom follow from the groups. They are never narrower than those of independent images.

The design effect is the larger of two:

- that of the loss, from the spread of the groups' losses
- the mean one of the four cells of the paired table (Rao & Scott): whether the images of a group are right and wrong
  together. A rare loss is too rare to show its own spread.

With few images outside the largest cell, both estimates are uncertain. The result is therefore drawn towards its
largest value, the size of a group, as if half an independent image more had shown it. ``experiments/group_coverage.py``
measures the coverage; other intervals that were tried did not hold it (experiments/LOG.md).

Source: J. N. K. Rao, A. J. Scott (1992), A simple method for the analysis of clustered binary data, Biometrics 48,
577-585.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.interval import tango_interval, wilson_interval_pct

__all__ = ["FEWEST_GROUPS", "INDEPENDENT", "Sampling", "sampling_of", "sampling_of_sizes"]

FEWEST_GROUPS = 5
"""Fewer groups of equal size are no evidence about other groups."""

_Z = NormalDist().inv_cdf(0.975)
_PRIOR_IMAGES = 0.5


@dataclass(frozen=True)
class Sampling:
    """How test images were drawn, as far as intervals depend on it.

    Attributes:
        groups: Number of groups; None: the images are independent.
        equal_groups: Number of groups of equal size with the same information; at most ``groups``.
        design_effect: Number of images that count as one independent image, at least 1.
    """

    groups: int | None = None
    equal_groups: float = np.inf
    design_effect: float = 1.0

    @property
    def too_few(self) -> bool:
        """Whether the groups are no evidence about other groups. The intervals are then those of independent images."""
        return self.equal_groups < FEWEST_GROUPS

    def tango(self, n: int, only_a: int, only_b: int) -> tuple[float, float]:
        """Return `tango_interval` with a confidence of 95 %, widened for the groups."""
        low, high = tango_interval(n, only_a, only_b)
        if self.groups is None or self.too_few:
            return low, high
        effect = self.design_effect
        wide = tango_interval(n / effect, only_a / effect, only_b / effect, self._confidence)
        return min(low, wide[0]), max(high, wide[1])

    def wilson_pct(self, right: int, n: int) -> list[float]:
        """Return `wilson_interval_pct` with a confidence of 95 %, widened for the groups."""
        low, high = wilson_interval_pct(right, n)
        if self.groups is None or self.too_few:
            return [low, high]
        wide = wilson_interval_pct(right / self.design_effect, n / self.design_effect, self._confidence)
        return [min(low, wide[0]), max(high, wide[1])]

    @property
    def stretch(self) -> float:
        """Factor of the width of an interval that has no form for groups."""
        return 1.0 if self.groups is None or self.too_few else float(self._quantile / _Z * self.design_effect**0.5)

    @property
    def _quantile(self) -> float:
        return _student(self.equal_groups - 1)

    @property
    def _confidence(self) -> float:
        """Confidence at which intervals that use the normal quantile use Student's."""
        return 2 * NormalDist().cdf(self._quantile) - 1


INDEPENDENT = Sampling()


def sampling_of_sizes(groups: npt.NDArray[np.str_] | None) -> Sampling:
    """Return the sampling that follows from the sizes of the groups only, as if all predictions were right.

    Args:
        groups: As of `sampling_of`.
    """
    right = np.ones(0 if groups is None else len(groups), bool)
    return sampling_of(right, right, groups)


def sampling_of(
    fp32_right: npt.NDArray[np.bool_], int8_right: npt.NDArray[np.bool_], groups: npt.NDArray[np.str_] | None
) -> Sampling:
    """Return how much groups of test images narrow down the accuracy of two models.

    Args:
        fp32_right: ``[N]`` bool, whether the FP32 model is right, image by image.
        int8_right: ``[N]`` bool, the same for INT8.
        groups: ``[N]`` str, the group of each image; an empty name is a group of its own. None: no groups.

    Returns:
        `INDEPENDENT` if no group has two images.
    """
    if groups is None:
        return INDEPENDENT
    named, members = np.unique(groups, return_inverse=True)
    own = groups == ""
    members = np.unique(np.where(own, len(named) + np.arange(len(groups)), members), return_inverse=True)[1]
    cells = np.stack([fp32_right & int8_right, fp32_right & ~int8_right, ~fp32_right & int8_right])
    cells = np.concatenate([cells, ~cells.any(axis=0, keepdims=True)])
    counts: npt.NDArray[np.float64] = np.stack([np.bincount(members, cell) for cell in cells], axis=1).astype(
        np.float64
    )
    sizes = counts.sum(axis=1)
    if len(sizes) == len(groups):
        return INDEPENDENT
    n, size = len(groups), float((sizes**2).sum() / len(groups))
    if n / size < FEWEST_GROUPS:
        return Sampling(len(sizes), n / size)
    shares = counts.sum(axis=0) / n
    loss = shares[1] - shares[2]
    spread = _spread(counts, sizes, shares).sum()
    of_table = spread / (shares * (1 - shares)).sum() if shares.max() < 1 else size
    of_loss = _spread((counts[:, 1] - counts[:, 2])[:, None], sizes, np.array([loss]))[0]
    discordant = shares[1] + shares[2] - loss**2
    estimate = max(1.0, of_table, of_loss / discordant if discordant else 1.0)
    others = n * (1 - shares.max())  # images outside the largest cell, of which others / estimate are independent
    return Sampling(len(sizes), n / size, float((others + _PRIOR_IMAGES * size) / (others / estimate + _PRIOR_IMAGES)))


def _spread(
    totals: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], means: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the variance per image that the totals of the groups show, ``[K]``.

    Args:
        totals: Sum over the images of each group, ``[G, K]``.
        sizes: Images of each group, ``[G]``.
        means: Mean over all images, ``[K]``.
    """
    count = len(sizes)
    squares: npt.NDArray[np.float64] = np.sum((totals - sizes[:, None] * means) ** 2, axis=0)
    return squares * (count / (count - 1) / float(sizes.sum()))


def _student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t distribution, within 0.001 from 4 degrees of freedom on.

    Abramowitz & Stegun (1964), 26.7.5, an expansion around the normal quantile. scipy is not installed on a device.
    """
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))

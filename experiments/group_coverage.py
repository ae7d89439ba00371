"""Coverage of the intervals for grouped test images, next to intervals that do not hold it.

Each case draws sets of test images in groups with a fixed seed and compares the intervals of the loss with the true
loss. It needs no data. Takes 3 minutes of CPU time.

    python experiments/group_coverage.py

Two models of the groups, both with a given intra-cluster correlation (ICC):

- `shares`: each group has shares of its own of the four cells of the paired table, drawn from a Dirichlet distribution.
  The ICC of every cell is the given one. At a high ICC a group is nearly all right, or nearly all lost.
- `margin`: an image is right if a normal margin is positive, and INT8 adds a small error to it. The given share of the
  margin's variance is common to the group. Accuracies differ between groups, changed predictions hardly cluster.

Prints a Markdown table per model with ``coverage (upper end below the true loss)`` in percent, nominal 95 and at most
2.5, and the mean width in percentage points. Columns: ``tango`` as if images were independent; ``own``: design effect
of the loss only, with Student's t; ``bootstrap`` of the groups (percentiles, 500 resamples); ``gate``: the interval of
`kdedge.benchmarks.grouped`, followed by its coverage of FP32 accuracy.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.grouped import sampling_of
from kdedge.benchmarks.interval import tango_interval

SETS = 400
GROUPS = (8, 20, 50, 140)
CORRELATIONS = (0.0, 0.02, 0.1, 0.5)
# Only FP32 right and only INT8 right, and wrong in both, as shares of the images; and images per group.
TABLES = {
    "accuracy 90 %, discordance 1 %, loss 0.5 pp, 50 images": (0.0075, 0.0025, 0.0975, 50),
    "accuracy 90 %, discordance 1 %, loss 0.5 pp, 300 images": (0.0075, 0.0025, 0.0975, 300),
    "accuracy 90 %, discordance 2 %, loss 0, 50 images": (0.01, 0.01, 0.09, 50),
    "accuracy 99 %, discordance 0.7 %, loss 0.5 pp, 50 images": (0.006, 0.001, 0.009, 50),
}
METHODS = ("tango", "own", "bootstrap", "gate")
# Mean margin, standard deviation of the error of INT8, and its mean.
MARGIN = (1.28, 0.06, 0.03)

_Rights = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def sizes_of(groups: int, images: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return unequal sizes: log-normal with a standard deviation of 0.5."""
    return np.maximum(1, np.round(images * np.exp(rng.normal(0, 0.5, groups)))).astype(np.int64)


def by_shares(cells: tuple[float, float, float], correlation: float) -> Callable[..., _Rights]:
    """Return a draw from groups with shares of their own."""
    shares = np.array([1 - sum(cells), *cells])

    def draw(sizes: npt.NDArray[np.int64], rng: np.random.Generator) -> _Rights:
        own = [rng.dirichlet(shares * (1 / correlation - 1)) if correlation else shares for _ in range(len(sizes))]
        kinds = np.concatenate([rng.choice(4, size, p=p) for size, p in zip(sizes, own, strict=True)])
        return kinds <= 1, (kinds == 0) | (kinds == 2)

    return draw


def by_margin(correlation: float) -> Callable[..., _Rights]:
    """Return a draw from groups that share a part of the margin."""
    mean, error, shift = MARGIN

    def draw(sizes: npt.NDArray[np.int64], rng: np.random.Generator) -> _Rights:
        common = np.repeat(rng.normal(size=len(sizes)), sizes)
        fp32 = mean + math.sqrt(correlation) * common + math.sqrt(1 - correlation) * rng.normal(size=len(common))
        return fp32 > 0, fp32 - shift + error * rng.normal(size=len(fp32)) > 0

    return draw


def intervals(
    fp32: npt.NDArray[np.bool_], int8: npt.NDArray[np.bool_], sizes: npt.NDArray[np.int64], rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return the intervals of the loss by method, as fractions, and that of FP32 accuracy."""
    members = np.repeat(np.arange(len(sizes)), sizes)
    found = sampling_of(fp32, int8, members.astype(str))
    n, only_fp32, only_int8 = len(fp32), int((fp32 & ~int8).sum()), int((int8 & ~fp32).sum())
    losses = np.bincount(members, weights=fp32.astype(float) - int8, minlength=len(sizes))
    draws = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), 500)
    low, high = np.quantile((draws @ losses) / (draws @ sizes), (0.025, 0.975))
    loss = losses.sum() / n
    independent = (only_fp32 + only_int8) / n - loss**2
    spread = ((losses - sizes * loss) ** 2).sum() * len(sizes) / (len(sizes) - 1) / n
    own = type(found)(found.groups, found.equal_groups, max(1.0, spread / independent) if independent else 1.0)
    right = int(fp32.sum())
    return {
        "tango": tango_interval(n, only_fp32, only_int8),
        "own": own.tango(n, only_fp32, only_int8),
        "bootstrap": (float(low), float(high)),
        "gate": found.tango(n, only_fp32, only_int8),
        "accuracy": (found.wilson_pct(right, n)[0] / 100, found.wilson_pct(right, n)[1] / 100),
    }


def row(draw: Callable[..., _Rights], groups: int, images: int, loss: float, accuracy: float) -> str:
    """Return the cells of one case."""
    rng = np.random.default_rng(0)
    covered, below, width = (dict.fromkeys((*METHODS, "accuracy"), 0.0) for _ in range(3))
    for _ in range(SETS):
        sizes = sizes_of(groups, images, rng)
        for name, (low, high) in intervals(*draw(sizes, rng), sizes, rng).items():
            true = accuracy if name == "accuracy" else loss
            covered[name] += 100 * (low <= true <= high) / SETS
            below[name] += 100 * (high < true) / SETS
            width[name] += 100 * (high - low) / SETS
    cells = [f"{covered[name]:.1f} ({below[name]:.1f}), {width[name]:.1f}" for name in METHODS]
    return " | ".join([*cells, f"{covered['accuracy']:.1f}, {width['accuracy']:.1f}"])


def main() -> None:
    """Compute all cases and print the tables."""
    heading = f"| groups | ICC | {' | '.join(METHODS)} | accuracy |\n|---|---|{'---|' * (len(METHODS) + 1)}"
    for title, (*cells, images) in TABLES.items():
        print(f"\nshares: {title} per group\n\n{heading}")
        only_fp32, only_int8, wrong = cells
        for groups in GROUPS:
            for correlation in CORRELATIONS:
                draw = by_shares((only_fp32, only_int8, wrong - only_int8), correlation)
                cell = row(draw, groups, images, only_fp32 - only_int8, 1 - wrong)
                print(f"| {groups} | {correlation:g} | {cell} |", flush=True)
    fp32, int8 = by_margin(0)(np.array([10_000_000]), np.random.default_rng(0))
    loss, accuracy = float(fp32.mean() - int8.mean()), float(fp32.mean())
    print(f"\nmargin: accuracy {100 * accuracy:.1f} %, loss {100 * loss:.2f} pp, 50 images per group\n\n{heading}")
    for groups in GROUPS:
        for correlation in CORRELATIONS:
            print(
                f"| {groups} | {correlation:g} | {row(by_margin(correlation), groups, 50, loss, accuracy)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

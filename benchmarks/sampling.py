"""Draw a sample of images, stratified by class and seeded, for calibration, golden inputs and emulated CPUs."""

import numpy as np
import numpy.typing as npt

__all__ = ["stratified_sample"]


def stratified_sample(labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw ``count`` images, as evenly over the classes as possible.

    Args:
        labels: ``[N] int64``, the class of each image.
        count: Number of images; all N if there are fewer.
        seed: Seed of the sample.

    Returns:
        Indices into ``labels``, ``[min(count, N)] int64``, in random order; a smaller count returns the first indices
        of a larger one.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    # The first image of every class comes before any second one; the permutation breaks ties.
    return order[np.argsort(rank[order], kind="stable")][:count]

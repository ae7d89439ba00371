"""One way to draw a few images from many: stratified by class, with a seed.

Calibration, golden inputs and emulated CPUs all draw with `stratified_sample`, so that no class is left out.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["stratified_sample"]


def stratified_sample(labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw ``count`` images, as evenly over the classes as possible.

    Args:
        labels: ``[N] int64``, the class of each image.
        count: How many to draw; all N if there are fewer.
        seed: Decides which.

    Returns:
        Indices into ``labels``, ``[min(count, N)] int64``, in random order; a smaller count returns the first indices
        of a larger one.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    # Every class gives its first image before any gives its second; the permutation breaks ties.
    return order[np.argsort(rank[order], kind="stable")][:count]

"""The loss of balanced accuracy (mean recall of the classes) of INT8 against FP32, with a bootstrap interval.

The same images of each class are drawn with replacement for both models (a paired, stratified bootstrap), 2,000 times
with a fixed seed. The ends of the interval are the 2.5 % and 97.5 % percentiles.

Few images with exactly one correct model make this interval too narrow, and none make it a point. It is therefore at
least as wide as Tango's interval without such an image. A rare class can hide the largest loss, so all classes count as
many images as the smallest one.
"""

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.interval import tango_interval

__all__ = ["balanced_loss", "counted_images"]

_RESAMPLES = 2000


def balanced_loss(
    fp32_right: npt.NDArray[np.bool_], int8_right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return the loss of balanced accuracy and the ends of its 95 % interval, as fractions.

    Args:
        fp32_right: ``[N]`` bool, whether the FP32 model is right, image by image.
        int8_right: ``[N]`` bool, the same for INT8.
        labels: ``[N]`` int64, N > 0. Classes without images do not count.
    """
    rng = np.random.default_rng(0)
    classes, sizes = np.unique(labels, return_counts=True)
    loss, resampled = 0.0, np.zeros(_RESAMPLES)
    for label, n in zip(classes.tolist(), sizes.tolist(), strict=True):
        fp32, int8 = fp32_right[labels == label], int8_right[labels == label]
        only_fp32, only_int8 = int((fp32 & ~int8).sum()), int((int8 & ~fp32).sum())
        # A resample of the images is a draw of these three counts.
        shares = np.array([only_fp32, only_int8, n - only_fp32 - only_int8]) / n
        drawn = rng.multinomial(n, shares, _RESAMPLES)
        loss += (only_fp32 - only_int8) / n / len(classes)
        resampled += (drawn[:, 0] - drawn[:, 1]) / n / len(classes)
    lower, upper = (float(end) for end in np.quantile(resampled, (0.025, 0.975)))
    least = tango_interval(counted_images(labels), 0, 0)[1]
    return loss, min(lower, loss - least), max(upper, loss + least)


def counted_images(labels: npt.NDArray[np.int64]) -> int:
    """Return the number of images if all classes (``[N] int64``, N > 0) count as many as the smallest one."""
    sizes = np.unique(labels, return_counts=True)[1]
    return len(sizes) * int(sizes.min())

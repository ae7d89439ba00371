"""The learning rate by the progress of a training."""

import math
from typing import NamedTuple

__all__ = ["WARM_UP", "EarlyEnd", "early_end", "learning_rate"]

WARM_UP = 0.2  # share of a training in which the one-cycle schedule rises


class EarlyEnd(NamedTuple):
    """Epochs after which the rate falls to zero early, and after which the training ends, and why."""

    start: int
    end: int
    reason: str = ""

    def rate(self, progress: float, epochs: int, schedule: str) -> float:
        """Return the share of the peak learning rate, 0..1, at ``progress`` in 0..1 of ``epochs``."""
        start, end = self.start / epochs, self.end / epochs
        rate = learning_rate(min(progress, start), 1.0, schedule)
        return rate * (end - progress) / (end - start) if progress > start else rate


def early_end(start: int, epochs: int, reason: str = "") -> EarlyEnd:
    """Return the end of a training of ``epochs`` whose rate falls from ``start``: half as many epochs later."""
    end = start + math.ceil(start / 2)
    return EarlyEnd(start, end, reason) if end < epochs else EarlyEnd(epochs, epochs)


def learning_rate(progress: float, peak: float, schedule: str) -> float:
    """Return the learning rate at ``progress`` in 0..1.

    ``one-cycle`` rises linearly from peak/20 over the first fifth and falls linearly to 0 (after Smith & Topin,
    arXiv:1708.07120); ``constant`` stays at the peak.
    """
    if schedule == "constant":
        return peak
    if progress < WARM_UP:
        return peak * (0.05 + 0.95 * progress / WARM_UP)
    return peak * (1 - progress) / (1 - WARM_UP)

"""The accuracy gate: does INT8 lose less than the limit, as far as the test images can tell?

Both models answer the same images, so the loss is a difference of paired proportions and only the images on which
exactly one of them is right carry information (`benchmarks.interval`).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.interval import tango_interval

__all__ = ["judge", "tango_interval"]

# Nobody collects more images than this; beyond it "undecided" cannot be resolved by testing.
_MOST_IMAGES = 10**12


def judge(fp32_right: npt.NDArray[np.bool_], int8_right: npt.NDArray[np.bool_], limit_pp: float) -> dict[str, Any]:
    """Compare two models on the same images and give the verdict of the gate.

    Args:
        fp32_right: ``[N]`` bool, whether the FP32 model's first answer was right, image by image.
        int8_right: ``[N]`` bool, the same images in the same order for INT8.
        limit_pp: The loss that is refused, in percentage points, greater than 0.

    Returns:
        The ``gate`` section of ``report.json``. ``verdict`` is ``passed`` if the upper end of the 95 % interval
        of the loss is below the limit, ``failed`` if the lower end is at or above it, else ``undecided``.
        ``images_to_decide`` is the number of images at which the same rates would decide an undecided verdict
        (None if it is decided, or if the loss equals the limit so that no number would).

    Raises:
        ValueError: The two differ in shape, or are empty.
    """
    if fp32_right.shape != int8_right.shape or fp32_right.ndim != 1 or not len(fp32_right):
        raise ValueError(f"expected two [N] arrays, N > 0; got {fp32_right.shape} and {int8_right.shape}")
    n = len(fp32_right)
    only_fp32 = int(np.count_nonzero(fp32_right & ~int8_right))
    only_int8 = int(np.count_nonzero(int8_right & ~fp32_right))
    lower, upper = tango_interval(n, only_fp32, only_int8)
    limit = limit_pp / 100
    verdict = "passed" if upper < limit else "failed" if lower >= limit else "undecided"
    loss_pp = 100 * (only_fp32 - only_int8) / n
    needed = _images_to_decide(n, only_fp32, only_int8, limit) if verdict == "undecided" else None
    gate = {
        "limit_pp": limit_pp,
        "loss_pp": round(loss_pp, 4),
        "loss_lower95_pp": round(100 * lower, 4),
        "loss_upper95_pp": round(100 * upper, 4),
        "fp32_only_right": only_fp32,
        "int8_only_right": only_int8,
        "verdict": verdict,
        "passed": verdict == "passed",
        "images_to_decide": needed,
    }
    return {**gate, "reason": _reason(gate, n)}


def _images_to_decide(n: int, only_fp32: int, only_int8: int, limit: float) -> int | None:
    """Return the smallest number of images that would decide at the observed rates (None: no number would)."""
    loss = (only_fp32 - only_int8) / n
    if math.isclose(loss, limit, rel_tol=1e-9):
        return None

    def decided(images: int) -> bool:
        scale = images / n
        lower, upper = tango_interval(images, only_fp32 * scale, only_int8 * scale)
        return upper < limit if loss < limit else lower >= limit

    many = 2 * n
    while not decided(many):
        many *= 2
        if many > _MOST_IMAGES:
            return None
    few = many // 2
    while many - few > 1:
        middle = (few + many) // 2
        if decided(middle):
            many = middle
        else:
            few = middle
    return many


def _reason(gate: Mapping[str, Any], n: int) -> str:
    """Say the verdict and its grounds in one plain sentence."""
    loss, lower, upper = (gate[key] for key in ("loss_pp", "loss_lower95_pp", "loss_upper95_pp"))
    change = f"{'loses' if loss > 0 else 'gains'} {abs(loss):.2f} pp" if loss else "neither loses nor gains"
    seen = f"INT8 {change} on {n:,} test images (95 % interval of the loss {lower:+.2f} to {upper:+.2f} pp)"
    limit, needed = f"the limit of {gate['limit_pp']:g} pp", gate["images_to_decide"]
    if gate["verdict"] == "passed":
        return f"{seen}: less than {limit}."
    if gate["verdict"] == "failed":
        return f"{seen}: not less than {limit}."
    more = f"about {needed:,} images at the same rates would decide" if needed else "no number of images would decide"
    return f"{seen}: {limit} lies inside the interval; {more}."

"""The accuracy gate: decide from test images whether an INT8 model may replace its FP32 model.

Three checks, each with a 95 % interval on the same images:

1. Both models have learned something: they are better than always predicting the most frequent class
   (`kdedge.benchmarks.chance`).
2. INT8 keeps the accuracy: the paired loss (`kdedge.benchmarks.interval`) is below the limit. A significant gain of the
   limit fails too, because rounding does not teach a model.
3. INT8 follows FP32: the share of changed predictions is below 20 times the limit (10 % at 0.5 pp). Near a class border
   a prediction changes either way at no cost; the shipped models change 0.5 to 2.4 % (experiments/LOG.md, section 50).
   A model that changes more is another model, whatever its accuracy.

Images may be in groups (patients, recordings) that resemble each other. The intervals then respect the groups
(`kdedge.benchmarks.grouped`), and fewer than five groups of equal size cannot pass: they are no evidence about others.

A failed check fails the gate. A check that the images cannot decide leaves it undecided.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.balanced import balanced_loss
from kdedge.benchmarks.chance import learned, majority_baseline
from kdedge.benchmarks.grouped import FEWEST_GROUPS, Sampling, sampling_of
from kdedge.benchmarks.interval import tango_interval, wilson_interval_pct

__all__ = ["images_to_pass", "judge", "paired_loss", "tango_interval"]

# More test images than this are unrealistic.
_MOST_IMAGES = 10**12
_CHANGES_PER_LOSS = 20
_PLAUSIBLE = 10  # times the number of test images: more are not suggested


def judge(
    fp32_right: npt.NDArray[np.bool_],
    int8_right: npt.NDArray[np.bool_],
    limit_pp: float,
    *,
    changed: int | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    class_names: Sequence[str] = (),
    balanced: bool = False,
    groups: npt.NDArray[np.str_] | None = None,
    unit: str = "image",
) -> dict[str, Any]:
    """Compare two models on the same images and return the verdict of the gate.

    Args:
        fp32_right: ``[N]`` bool, whether the FP32 model is correct, image by image.
        int8_right: ``[N]`` bool, the same images in the same order for INT8.
        limit_pp: Maximum accepted loss in percentage points, greater than 0.
        changed: Number of images with different predictions; None: with exactly one correct prediction.
        labels: ``[N]`` int64, the classes of the images; None: unknown.
        class_names: Names of the classes, with ``labels``; empty: no comparison with a constant prediction.
        balanced: Judge the loss of balanced accuracy (`kdedge.benchmarks.balanced`), not of top-1; needs ``labels``.
        groups: ``[N]`` str, the group of each image; an empty name is a group of its own. None: no groups.
        unit: Word for one input in the reason.

    Returns:
        The ``gate`` section of ``report.json``:

        - ``verdict``: ``passed``, ``failed`` or ``undecided``; ``passed``: whether it is ``passed``.
        - ``cause``: the check that did not pass: ``learned``, ``loss``, ``gain``, ``changed`` or ``groups`` (too few);
          None if all did.
        - ``metric``: ``top1`` or ``balanced``, the accuracy whose loss is judged.
        - ``limit_pp``, ``loss_pp`` and the ends of its 95 % interval, ``loss_lower95_pp`` and ``loss_upper95_pp``.
        - ``fp32_only_right``, ``int8_only_right`` and ``changed_answers``: numbers of images.
        - ``provable_pp``: the smallest limit in steps of 0.1 pp that the same predictions would pass; None unless the
          loss is undecided.
        - ``images_to_decide``: the number of images at which the same rates would decide an undecided loss; None if it
          is decided, or if no number would decide it because the loss equals the limit, or for balanced accuracy or
          groups.
        - ``groups``, ``equal_groups`` and ``design_effect`` (see `kdedge.benchmarks.grouped.Sampling`); None without
          groups. ``independent_images``: N / design effect.
        - ``reason``: one or two sentences.

    Raises:
        ValueError: The arrays differ in shape, or are empty.
    """
    if fp32_right.shape != int8_right.shape or fp32_right.ndim != 1 or not len(fp32_right):
        raise ValueError(f"expected two [N] arrays, N > 0; got {fp32_right.shape} and {int8_right.shape}")
    n = len(fp32_right)
    only_fp32 = int(np.count_nonzero(fp32_right & ~int8_right))
    only_int8 = int(np.count_nonzero(int8_right & ~fp32_right))
    changed = only_fp32 + only_int8 if changed is None else changed
    sampling = sampling_of(fp32_right, int8_right, groups)
    loss, lower, upper = paired_loss(fp32_right, int8_right, sampling, labels if balanced else None)
    compared = labels if len(class_names) else None
    known = True if compared is None else _known(learned(right, compared) for right in (fp32_right, int8_right))
    verdict, cause = _verdict((lower, upper), limit_pp / 100, sampling.wilson_pct(changed, n), known)
    if verdict != "failed" and sampling.too_few:
        verdict, cause = "undecided", "groups"
    open_loss = verdict == "undecided" and cause == "loss"
    gate = {
        "metric": "balanced" if balanced else "top1",
        "limit_pp": limit_pp,
        "loss_pp": round(100 * loss, 4),
        "loss_lower95_pp": round(100 * lower, 4),
        "loss_upper95_pp": round(100 * upper, 4),
        "fp32_only_right": only_fp32,
        "int8_only_right": only_int8,
        "changed_answers": changed,
        "verdict": verdict,
        "passed": verdict == "passed",
        "cause": cause,
        "provable_pp": round(math.floor(1000 * upper + 1) / 10, 1) if open_loss else None,
        "images_to_decide": (
            _images_to_decide(n, only_fp32, only_int8, limit_pp / 100)
            if open_loss and not balanced and groups is None
            else None
        ),
        **_of_groups(sampling, n),
    }
    constant = "" if compared is None else class_names[majority_baseline(compared).label]
    return {**gate, "reason": _reason(gate, n, constant, unit)}


def paired_loss(
    fp32_right: npt.NDArray[np.bool_],
    int8_right: npt.NDArray[np.bool_],
    sampling: Sampling,
    balanced_over: npt.NDArray[np.int64] | None = None,
) -> tuple[float, float, float]:
    """Return the loss of accuracy of INT8 against FP32 and the ends of its 95 % interval, as fractions.

    Args:
        fp32_right: As of `judge`.
        int8_right: As of `judge`.
        sampling: How the images were drawn.
        balanced_over: ``[N]`` int64, the classes of the images, if each class counts the same; None: each image does.
    """
    if balanced_over is not None:
        loss, lower, upper = balanced_loss(fp32_right, int8_right, balanced_over)
        return loss, loss + sampling.stretch * (lower - loss), loss + sampling.stretch * (upper - loss)
    n = len(fp32_right)
    only_fp32 = int(np.count_nonzero(fp32_right & ~int8_right))
    only_int8 = int(np.count_nonzero(int8_right & ~fp32_right))
    return (only_fp32 - only_int8) / n, *sampling.tango(n, only_fp32, only_int8)


def images_to_pass(limit_pp: float, discordance: float, power: float) -> int | None:
    """Return how many test images an INT8 model needs that in truth loses nothing, to pass with a probability.

    Args:
        limit_pp: The loss that is refused, in percentage points, greater than 0.
        discordance: Expected share of the images on which exactly one model is right, 0..1.
        power: Probability that the gate passes, as a fraction from 0.5 to below 1.

    Returns:
        The number of images; None if INT8 changes too many predictions to pass with any number.
    """
    limit, z = limit_pp / 100, NormalDist().inv_cdf(power)

    def passes(images: int) -> bool:
        # The loss on the test images is at most this one with that probability.
        loss = min(z * math.sqrt(discordance / images), discordance)
        only_fp32, only_int8 = ((discordance + sign * loss) * images / 2 for sign in (1, -1))
        changed_pct = wilson_interval_pct(discordance * images, images)[1]
        return tango_interval(images, only_fp32, only_int8)[1] < limit and changed_pct < _most_changed_pct(limit)

    return _fewest(passes, 1)


def _of_groups(sampling: Sampling, n: int) -> dict[str, Any]:
    """Return the entries of the gate on groups."""
    grouped = sampling.groups is not None
    return {
        "groups": sampling.groups,
        "equal_groups": round(sampling.equal_groups, 2) if grouped else None,
        "design_effect": round(sampling.design_effect, 3) if grouped and not sampling.too_few else None,
        "independent_images": round(n / sampling.design_effect) if grouped and not sampling.too_few else None,
    }


def _known(values: Iterable[bool | None]) -> bool | None:
    """Return False if one value is False, else None if one is None, else True."""
    found = set(values)
    return False if False in found else None if None in found else True


def _verdict(
    loss: tuple[float, float], limit: float, changed_pct: Sequence[float], known: bool | None
) -> tuple[str, str | None]:
    """Return the verdict and its cause.

    Args:
        loss: The interval of the loss, as fractions.
        limit: The limit, as a fraction.
        changed_pct: The interval of the share of changed predictions, in percent.
        known: Whether the models have learned something; None: undecided.
    """
    most_changed_pct = _most_changed_pct(limit)
    failed = {
        "learned": known is False,
        "loss": loss[0] >= limit,
        "gain": -loss[1] >= limit,
        "changed": changed_pct[0] >= most_changed_pct,
    }
    undecided = {"loss": loss[1] >= limit, "learned": known is None, "changed": changed_pct[1] >= most_changed_pct}
    for verdict, checks in (("failed", failed), ("undecided", undecided)):
        if cause := next((name for name, found in checks.items() if found), None):
            return verdict, cause
    return "passed", None


def _images_to_decide(n: int, only_fp32: int, only_int8: int, limit: float) -> int | None:
    """Return the smallest number of images that would decide at the observed rates (None: no number would)."""
    loss = (only_fp32 - only_int8) / n
    if math.isclose(loss, limit, rel_tol=1e-9):
        return None

    def decided(images: int) -> bool:
        scale = images / n
        lower, upper = tango_interval(images, only_fp32 * scale, only_int8 * scale)
        return upper < limit if loss < limit else lower >= limit

    return _fewest(decided, n)


def _fewest(enough: Callable[[int], bool], too_few: int) -> int | None:
    """Return the smallest number of images that is enough (None: no number is)."""
    many = 2 * too_few
    while not enough(many):
        many *= 2
        if many > _MOST_IMAGES:
            return None
    few = many // 2
    while many - few > 1:
        middle = (few + many) // 2
        if enough(middle):
            many = middle
        else:
            few = middle
    return many


def _most_changed_pct(limit: float) -> float:
    """Return the share of changed predictions, in percent, that is refused at a limit of the loss (a fraction)."""
    return 100 * _CHANGES_PER_LOSS * limit


def _reason(gate: Mapping[str, Any], n: int, constant: str, unit: str) -> str:
    """Return the verdict as one or two sentences.

    Args:
        gate: The other entries of the gate.
        n: Number of test images.
        constant: Name of the most frequent class.
        unit: Word for one input.
    """
    loss, lower, upper = (gate[key] for key in ("loss_pp", "loss_lower95_pp", "loss_upper95_pp"))
    of_metric = " of balanced accuracy" if gate["metric"] == "balanced" else ""
    change = f"{'loses' if loss > 0 else 'gains'} {abs(loss):.2f} pp{of_metric}" if loss else "neither loses nor gains"
    seen = f"INT8 {change} on {_inputs(gate, n, unit)} (95 % interval of the loss {lower:+.2f} to {upper:+.2f} pp)"
    limit = f"the limit of {gate['limit_pp']:g} pp"
    changed = f"INT8 changes {100 * gate['changed_answers'] / n:.1f} % of the predictions"
    most = f"the limit allows {_CHANGES_PER_LOSS * gate['limit_pp']:g} %"
    constant = f"better than always predicting `{constant}`"
    return {
        ("passed", None): f"{seen}: less than {limit}.",
        ("failed", "learned"): f"The model is not {constant}. {seen}.",
        ("failed", "loss"): f"{seen}: not less than {limit}.",
        ("failed", "gain"): f"INT8 does not follow FP32: {changed}. {seen}: rounding cannot gain {limit}.",
        ("failed", "changed"): f"INT8 does not follow FP32: {changed}, {most}. {seen}.",
        ("undecided", "loss"): f"{seen}: {limit} is inside the interval. {_provable(gate, n, unit)}.",
        ("undecided", "learned"): f"{seen}. These {unit}s are too few to show that the model is {constant}.",
        ("undecided", "groups"): f"{seen}. {_too_few(gate, unit)}.",
        ("undecided", "changed"): f"INT8 may not follow FP32: {changed}, {most}. {seen}.",
    }[gate["verdict"], gate["cause"]]


def _inputs(gate: Mapping[str, Any], n: int, unit: str) -> str:
    """Return the test images, their groups, and how many independent images they count as."""
    if gate["groups"] is None:
        return f"{n:,} test {unit}s"
    counted = gate["independent_images"]
    like = f", which count as {counted:,} independent {unit}s" if counted is not None and counted < n else ""
    return f"{n:,} test {unit}s of {gate['groups']:,} group{'s' * (gate['groups'] > 1)}{like}"


def _too_few(gate: Mapping[str, Any], unit: str) -> str:
    """Return a sentence on groups that are too few."""
    groups, equal = gate["groups"], gate["equal_groups"]
    if groups is None:
        return ""
    skewed = f", which count as {equal:.1f} of equal size," if equal <= groups - 0.05 else ""
    return (
        f"The interval is for new {unit}s of {'these groups' if groups > 1 else 'this group'}. "
        f"{groups:,} group{'s' * (groups > 1)}{skewed} cannot show how much INT8 loses on other groups: at least "
        f"{FEWEST_GROUPS} of equal size are needed"
    )


def _provable(gate: Mapping[str, Any], n: int, unit: str) -> str:
    """Return the limit that these images can prove, and a plausible number of images that would decide."""
    provable, needed = gate["provable_pp"], gate["images_to_decide"]
    if provable is None:
        return ""
    text = f"Provable with these {n:,} {unit}s: a loss of less than {provable:g} pp (`--limit-pp {provable:g}`)"
    more = f"; about {needed:,} {unit}s at the same rates would decide" if needed and needed <= _PLAUSIBLE * n else ""
    return text + more

"""The ladder: what is tried, from cheap to costly, when the validation images say that the gate would fail.

Batch norm is folded at export. Then: cross-layer equalisation, bias correction, adaptive rounding, the most sensitive
layers back to float (at most half of them), and with ``--qat`` a short fine-tuning. It stops at the first rung whose
interval on the validation images passes; the test images judge only once, afterwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gate import tango_interval
from export.candidates import Candidate
from export.equalise import equalise
from export.quantizer import Quantizer
from export.rounding import correct_biases, round_adaptively
from export.search import Trial, Validation
from export.sensitivity import measure_sensitivity
from pipeline.progress import log

__all__ = ["Rung", "climb", "settled"]


@dataclass(frozen=True)
class Rung:
    """A step of the ladder.

    Attributes:
        name: ``search`` for the ground, else what was done.
        trial: The model that it gave.
        gate: What the gate would say on the validation images.
        quantizer: The quantizer that built it.
    """

    name: str
    trial: Trial
    gate: Mapping[str, Any]
    quantizer: Quantizer

    def as_json(self) -> dict[str, Any]:
        """Return name, verdict and numbers."""
        keys = ("loss_pp", "loss_lower95_pp", "loss_upper95_pp", "verdict")
        return {
            "rung": self.name,
            "refused": self.trial.refused or None,
            **{key: self.gate[key] for key in keys},
            "sqnr_db": round(self.trial.score.sqnr_db, 2),
            "float_layers": list(self.trial.float_layers),
        }


def settled(gate: Mapping[str, Any], images: int) -> bool:
    """Return whether there is nothing to climb for.

    That is so if the interval passes, or if so few images could not pass even without a single difference and do not
    prove a failure either.
    """
    most_lenient = 100 * tango_interval(images, 0, 0)[1]
    too_few = most_lenient >= float(gate["limit_pp"])
    return bool(gate["verdict"] == "passed" or (too_few and gate["verdict"] != "failed"))


def climb(
    quantizer: Quantizer,
    start: Trial,
    validation: Validation,
    *,
    train_images: npt.NDArray[np.uint8] | None = None,
) -> list[Rung]:
    """Climb until the validation interval passes.

    Args:
        quantizer: The quantizer that built ``start``.
        start: The choice of the search.
        validation: What every rung is judged on.
        train_images: ``[N, S, S, 3] uint8``, for the fine-tuning; None: that rung is left out.

    Returns:
        The rungs in order, ``search`` first. The last is the one to ship: the first that passes, or if none does, the
        one with the smallest loss, once more. A rung that is partly in float without having chosen so is never it.
    """
    candidate = start.candidate
    images = len(validation.labels)
    rungs = [Rung("search", start, validation.gate(start.score), quantizer)]
    if settled(rungs[0].gate, images):
        return rungs
    log(f"quantize: the gate would fail on validation images ({_numbers(rungs[0])}); climbing the ladder")
    best = sound = rungs[0]

    def attempt(name: str, built: Quantizer, float_layers: tuple[str, ...] = ()) -> Rung:
        trial = validation.try_out(built, candidate, float_layers)
        rung = Rung(name, trial, validation.gate(trial.score), built)
        rungs.append(rung)
        log(f"quantize: {name}: {_numbers(rung)}{f'; not to be shipped: {trial.refused}' if trial.refused else ''}")
        return rung

    def done(rung: Rung) -> bool:
        return not rung.trial.refused and settled(rung.gate, images)

    repairs: list[tuple[str, Callable[[Quantizer, Candidate], Quantizer]]] = [
        ("cross-layer equalisation", lambda q, _: q.equivalent(equalise(q.core))),
        ("bias correction", correct_biases),
        ("adaptive rounding", round_adaptively),
    ]
    for name, repair in repairs:
        rung = attempt(name, repair(best.quantizer, candidate))
        if done(rung):
            return rungs
        # Nothing is built on a rung that made it worse, or that is partly in float although nobody chose that.
        if not rung.trial.refused:
            best = max(best, rung, key=lambda item: item.trial.score.sqnr_db)
        if best.quantizer.core is best.quantizer.original:
            sound = best
    # Not on repaired weights: they make up for the error of the very layer that goes back to float.
    rows = measure_sensitivity(sound.quantizer, candidate, validation)["layers"]
    by_noise = [row["layer"] for row in sorted(rows, key=lambda row: -row["noise_share"])]
    for count in range(1, len(by_noise) // 2 + 1):
        rung = attempt(f"{count} of {len(by_noise)} layers in float", sound.quantizer, tuple(by_noise[:count]))
        if done(rung):
            return rungs
    if train_images is not None:
        from export.qat import fine_tune

        trained = fine_tune(best.quantizer, candidate, train_images)
        if done(attempt("fine-tuning", trained)):
            return rungs
    shippable = [rung for rung in rungs if not rung.trial.refused]
    return [*rungs, min(shippable, key=lambda item: (item.gate["loss_pp"], -item.trial.score.sqnr_db))]


def _numbers(rung: Rung) -> str:
    gate = rung.gate
    return (
        f"loss {gate['loss_pp']:.2f} pp, 95 % {gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f}, "
        f"{rung.trial.score.sqnr_db:.1f} dB"
    )

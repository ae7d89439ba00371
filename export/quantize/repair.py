"""The ladder: the repair steps after the search, from cheap to costly.

Batch norm is folded at export. Bias correction is tried on every model and kept where the rule of the search prefers
it. If the gate would not pass on the validation images, further steps follow: cross-layer equalisation, adaptive
rounding, the most sensitive layers in float (at most half of them), and with ``--qat`` a short fine-tuning. The first
step that passes is taken, if it follows FP32 as closely as the best model before it: a logit SQNR that is more than
1 dB lower counts against it unless it is shown to keep more of FP32's right answers. Layers go to float only where a
fault is shown, because that costs speed. If no step passes, the rule of the search chooses among them. The test images
judge only once, afterwards.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.interval import tango_interval
from kdedge.export.quantize import rounding
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import SIMPLER_COSTS_DB, choose, keeps_more
from kdedge.export.quantize.equalise import equalise
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.rounding import correct_biases, round_adaptively
from kdedge.export.quantize.search import Trial, Validation
from kdedge.export.quantize.sensitivity import measure_sensitivity
from kdedge.progress import format_duration, log

__all__ = ["Rung", "climb", "settled"]

# A training step of PyTorch takes about as long as so many runs of onnxruntime over its batch.
_RUNS_PER_STEP = 8


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

    That is so if the gate passes, or if so few images could not pass even without a single difference and show no
    fault either.
    """
    too_few = 100 * tango_interval(images, 0, 0)[1] >= float(gate["limit_pp"])
    return bool(gate["verdict"] == "passed" or (too_few and gate["verdict"] != "failed"))


def climb(
    quantizer: Quantizer,
    start: Trial,
    validation: Validation,
    *,
    train_images: npt.NDArray[np.uint8] | None = None,
) -> list[Rung]:
    """Correct the biases, then climb until the validation images would pass the gate.

    Args:
        quantizer: The quantizer that built ``start``.
        start: The choice of the search.
        validation: What every rung is judged on.
        train_images: ``[N, S, S, 3] uint8``, for the fine-tuning; None: that rung is left out.

    Returns:
        The rungs in order, ``search`` first. The last is the one to ship, repeated if it is not the last that was
        tried: the first that passes and follows FP32 closely, or if none does, the choice of the search's rule. A rung
        that is partly in float without having chosen so is never it.
    """
    candidate = start.candidate
    images = len(validation.labels)
    rungs = [Rung("search", start, validation.gate(start.score), quantizer)]
    best, plain = rungs[0], quantizer

    def attempt(name: str, built: Quantizer, float_layers: tuple[str, ...] = ()) -> Rung:
        trial = validation.try_out(built, candidate, float_layers)
        rung = Rung(name, trial, validation.gate(trial.score), built)
        rungs.append(rung)
        log(f"quantize: {name}: {_numbers(rung)}{f'; not to be shipped: {trial.refused}' if trial.refused else ''}")
        return rung

    def done(rung: Rung) -> bool:
        return not rung.trial.refused and settled(rung.gate, images) and follows(rung)

    def follows(rung: Rung) -> bool:
        """Return whether a rung follows FP32 as closely as the best before it, or is shown to be more accurate."""
        new, old = rung.trial.score, best.trial.score
        return new.sqnr_db >= old.sqnr_db - SIMPLER_COSTS_DB or keeps_more(new, old)

    def better(rung: Rung) -> bool:
        """Return whether to go on from a rung: not if it made it worse, or is in float although nobody chose that."""
        return not rung.trial.refused and choose([best.trial.score, rung.trial.score]) == 1

    log(f"quantize: search: {_numbers(best)}")
    rung = attempt("bias correction", correct_biases(plain, candidate))
    if better(rung):
        best = rung
    if done(best):
        _say_too_few(best.gate, images)
        return rungs if best is rungs[-1] else [*rungs, best]

    log("quantize: the gate would not pass on the validation images; trying repairs")
    equalised = plain.equivalent(equalise(plain.core))
    rung = attempt("cross-layer equalisation", correct_biases(equalised, candidate))
    if done(rung):
        return rungs
    if better(rung):
        best, plain = rung, equalised
    _say_duration("adaptive rounding", quantizer, rounding.STEPS, rounding.BATCH)
    rung = attempt("adaptive rounding", round_adaptively(best.quantizer, candidate))
    if done(rung):
        return rungs
    if better(rung):
        best = rung
    if best.gate["loss_lower95_pp"] > 0 or best.gate["verdict"] == "failed":
        # Not on rounded weights: they make up for the error of the very layer that goes back to float.
        rows = measure_sensitivity(plain, candidate, validation)["layers"]
        by_noise = [row["layer"] for row in sorted(rows, key=lambda row: -row["noise_share"])]
        for count in range(1, len(by_noise) // 2 + 1):
            in_float = tuple(by_noise[:count])
            corrected = correct_biases(plain, candidate, in_float)
            if done(attempt(f"{count} of {len(by_noise)} layers in float", corrected, in_float)):
                return rungs
    else:
        log("quantize: no loss is shown on the validation images; no layer goes to float")
    if train_images is not None:
        from kdedge.export.quantize import qat

        _say_duration("fine-tuning", quantizer, qat.STEPS, qat.BATCH)
        trained = qat.fine_tune(best.quantizer, candidate, train_images)
        if done(attempt("fine-tuning", trained)):
            return rungs
    shippable = [
        rung
        for rung in rungs
        if not rung.trial.refused and (not rung.trial.float_layers or keeps_more(rung.trial.score, best.trial.score))
    ]
    return [*rungs, shippable[choose([rung.trial.score for rung in shippable])]]


def _say_too_few(gate: Mapping[str, Any], images: int) -> None:
    """Log why nothing more is tried although the gate would not pass."""
    if gate["verdict"] != "passed":
        log(f"quantize: {images:,} validation images are too few to show whether a repair helps; none is tried")


def _say_duration(name: str, quantizer: Quantizer, steps: int, batch: int) -> None:
    """Log about how long a repair by training takes, from one run over a batch."""
    images = quantizer.images[np.arange(batch) % len(quantizer.images)]
    run = tensor_runner(quantizer.original, ["logits"])
    run(images)
    start = time.perf_counter()
    run(images)
    log(f"quantize: {name}: about {format_duration(_RUNS_PER_STEP * steps * (time.perf_counter() - start))}")


def _numbers(rung: Rung) -> str:
    gate = rung.gate
    return (
        f"loss {gate['loss_pp']:.2f} pp, 95 % {gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f}, "
        f"{rung.trial.score.sqnr_db:.1f} dB"
    )

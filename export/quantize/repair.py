"""Repair steps after the search, from cheap to costly.

Error-compensated rounding with bias correction runs on every model and is kept if the rule of the search prefers it. If
the gate does not pass on the validation images, further steps follow: cross-layer equalisation, the most sensitive
layers in float (at most half of them), and with ``--qat`` a short fine-tuning. The first step that passes is taken if
it follows FP32 as closely as the best model before it: a logit SQNR more than 1 dB lower rejects it, unless it is shown
to keep more of FP32's correct predictions. Layers go to float only if a loss is shown, because float costs speed. If no
step passes, the rule of the search chooses among them. No step sees the test images.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import SIMPLER_COSTS_DB, choose, keeps_more
from kdedge.export.quantize.equalise import equalise
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.rounding import round_with_compensation
from kdedge.export.quantize.search import Trial, Validation
from kdedge.export.quantize.sensitivity import measure_sensitivity
from kdedge.progress import format_duration, log

__all__ = ["RepairStep", "repair", "settled", "why_not_fine_tuned"]

_FINE_TUNING = "fine-tuning"

# Logit SQNR above which no validation set so far has shown a loss of the gate's limit (experiment log, section 54).
FAITHFUL_DB = 30.0
# Runs of onnxruntime over a batch that take about as long as a training step of PyTorch on it.
_RUNS_PER_STEP = 8


@dataclass(frozen=True)
class RepairStep:
    """A model after a repair step.

    Attributes:
        name: Name of the step; ``search`` for the model before any.
        trial: The model.
        gate: The gate's result on the validation images.
        quantizer: The quantizer that built the model.
    """

    name: str
    trial: Trial
    gate: Mapping[str, Any]
    quantizer: Quantizer

    def as_json(self) -> dict[str, Any]:
        """Return the entry of ``rungs`` in ``candidates.json``."""
        keys = ("loss_pp", "loss_lower95_pp", "loss_upper95_pp", "verdict")
        return {
            "rung": self.name,
            "refused": self.trial.rejection_reason or None,
            **{key: self.gate[key] for key in keys},
            "sqnr_db": round(self.trial.score.sqnr_db, 2),
            "float_layers": list(self.trial.float_layers),
        }


def settled(verdict: str, sqnr_db: float, *, can_pass: bool) -> bool:
    """Return whether no repair is needed.

    That is the case if the gate passes. If no model can pass it on these images, the logits decide: the gate has not
    failed and their SQNR is at least `FAITHFUL_DB`.
    """
    return verdict == "passed" or (not can_pass and verdict != "failed" and sqnr_db >= FAITHFUL_DB)


def repair(
    quantizer: Quantizer,
    start: Trial,
    validation: Validation,
    *,
    train_images: npt.NDArray[Any] | None = None,
) -> list[RepairStep]:
    """Round with compensation, then try repair steps until the gate passes on the validation images.

    Args:
        quantizer: The quantizer that built ``start``.
        start: The choice of the search.
        validation: Scores every step.
        train_images: Images or windows for the fine-tuning; None: no fine-tuning.

    Returns:
        The steps in order, ``search`` first. The last is the one to ship, repeated if it is not the last that was
        tried: the first that passes and follows FP32 closely, else the choice of the search's rule. A step with
        layers that are unexpectedly in float is never shipped.
    """
    candidate = start.candidate
    can_pass = validation.can_pass
    steps = [RepairStep("search", start, validation.gate(start.score), quantizer)]
    best, plain = steps[0], quantizer

    def attempt(name: str, built: Quantizer, float_layers: tuple[str, ...] = ()) -> RepairStep:
        trial = validation.try_out(built, candidate, float_layers)
        step = RepairStep(name, trial, validation.gate(trial.score), built)
        steps.append(step)
        rejected = f"; rejected: {trial.rejection_reason}" if trial.rejection_reason else ""
        log(f"quantize: {name}: {_numbers(step)}{rejected}")
        return step

    def done(step: RepairStep) -> bool:
        # Who asks for fine-tuning gets it unless the gate passes: too few images do not settle the matter.
        enough = train_images is None and settled(step.gate["verdict"], step.trial.score.sqnr_db, can_pass=can_pass)
        return not step.trial.rejection_reason and (step.gate["verdict"] == "passed" or enough) and follows(step)

    def follows(step: RepairStep) -> bool:
        """Return whether a step follows FP32 as closely as the best before it, or is shown to be more accurate."""
        new, old = step.trial.score, best.trial.score
        return new.sqnr_db >= old.sqnr_db - SIMPLER_COSTS_DB or keeps_more(new, old)

    def better(step: RepairStep) -> bool:
        """Return whether further steps start from this one: it is valid and the search's rule prefers it."""
        return not step.trial.rejection_reason and choose([best.trial.score, step.trial.score]) == 1

    log(f"quantize: search: {_numbers(best)}")
    step = attempt("error-compensated rounding", round_with_compensation(plain, candidate))
    if better(step):
        best = step
    if done(best):
        _log_too_few(best.gate, len(validation.labels), quantizer.spec.unit)
        return steps if best is steps[-1] else [*steps, best]

    log("quantize: the gate does not pass on the validation data; trying repair steps")
    equalised = plain.equivalent(equalise(plain.core))
    step = attempt("cross-layer equalisation", round_with_compensation(equalised, candidate))
    if done(step):
        return steps
    if better(step):
        best, plain = step, equalised
    if best.gate["loss_lower95_pp"] > 0 or best.gate["verdict"] == "failed":
        # Not on rounded weights: their rounding compensates for the errors of layers that go back to float.
        rows = measure_sensitivity(plain, candidate, validation)["layers"]
        by_noise = [row["layer"] for row in sorted(rows, key=lambda row: -row["noise_share"])]

        def leave(names: tuple[str, ...]) -> RepairStep:
            rounded = round_with_compensation(plain, candidate, names)
            return attempt(f"{len(names)} of {len(by_noise)} layers in float", rounded, names)

        if any(done(leave(tuple(by_noise[:count]))) for count in range(1, len(by_noise) // 2 + 1)):
            return steps
    else:
        log("quantize: no loss is shown on the validation data; no layer goes to float")
    if train_images is not None:
        from kdedge.export.quantize import qat

        log(f"quantize: fine-tuning: {_duration(quantizer, qat.STEPS, qat.BATCH)}")
        trained = qat.fine_tune(best.quantizer, candidate, train_images)
        if done(attempt(_FINE_TUNING, trained)):
            return steps
    shippable = [
        step
        for step in steps
        if not step.trial.rejection_reason
        and (not step.trial.float_layers or keeps_more(step.trial.score, best.trial.score))
    ]
    return [*steps, shippable[choose([step.trial.score for step in shippable])]]


def why_not_fine_tuned(steps: Sequence[RepairStep]) -> str:
    """Return why the last of the steps of `repair` with training images is not fine-tuned, or an empty string."""
    if steps[-1].name == _FINE_TUNING:
        return ""
    if any(step.name == _FINE_TUNING for step in steps):
        return f"the rule of the search prefers {steps[-1].name} ({steps[-1].trial.score.sqnr_db:.1f} dB)"
    return f"the gate passes on the validation data after {steps[-1].name}"


def _log_too_few(gate: Mapping[str, Any], count: int, unit: str) -> None:
    """Log the reason why no repair follows a gate that is undecided."""
    if gate["verdict"] != "passed":
        inputs = f"{count:,} validation {unit}s" + (f" of {gate['groups']:,} groups" if gate["groups"] else "")
        log(f"quantize: {inputs} are too few to show whether a repair helps; none is tried")


def _duration(quantizer: Quantizer, steps: int, batch: int) -> str:
    """Return the estimated duration of a repair step that trains, from one run over a batch, for the log."""
    images = quantizer.images[np.arange(batch) % len(quantizer.images)]
    run = tensor_runner(quantizer.original, ["logits"], quantizer.spec)
    run(images)
    start = time.perf_counter()
    run(images)
    return f"about {format_duration(_RUNS_PER_STEP * steps * (time.perf_counter() - start))}"


def _numbers(step: RepairStep) -> str:
    gate = step.gate
    return (
        f"loss {gate['loss_pp']:.2f} pp, 95 % {gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f}, "
        f"{step.trial.score.sqnr_db:.1f} dB"
    )

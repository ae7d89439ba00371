"""Quantizes the FP32 model to INT8 for a target.

Searches over number formats, calibrators and calibration sizes (`kdedge.export.quantize.search`), tries repair steps if
the gate fails on validation images (`kdedge.export.quantize.repair`), and measures the sensitivity of each layer.
Calibrates on training images, chooses on validation images. Writes ``student.int8.onnx``, ``candidates.json``,
``sensitivity.json`` and figures.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from kdedge.benchmarks.host import host_kind
from kdedge.benchmarks.report.figures import draw_figures
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.dataset import Split
from kdedge.export.graph import read_model
from kdedge.export.options import QuantizeConfig
from kdedge.export.quantize.candidates import RULE
from kdedge.export.quantize.float_reasons import float_operators
from kdedge.export.quantize.quantizer import OP_TYPES, Quantizer
from kdedge.export.quantize.repair import RepairStep, repair, why_not_fine_tuned
from kdedge.export.quantize.search import Validation, search
from kdedge.export.quantize.sensitivity import measure_sensitivity
from kdedge.export.quantize.targets import TARGETS
from kdedge.files import write_atomic, write_json
from kdedge.progress import log, warn

__all__ = ["INT8_NAME", "quantize_model"]

INT8_NAME = "student.int8.onnx"
SCORED_IMAGES = 5000
_LARGER = 4  # the largest calibration size of the search, in multiples of --calibration-images


def quantize_model(
    path: Path,
    train: Split,
    val: Split,
    settings: QuantizeConfig,
    out_dir: Path,
    *,
    limit_pp: float,
    seed: int,
    balanced: bool = False,
) -> dict[str, Any]:
    """Quantize an FP32 model into ``out_dir/student.int8.onnx``.

    Args:
        path: ``student.onnx``.
        train: Training images, for calibration (and for fine-tuning with ``settings.qat``).
        val: Validation images, for every choice.
        settings: Options of the quantization.
        out_dir: The folder to write to.
        limit_pp: Maximum accepted accuracy drop, in percentage points; repair steps run above it.
        balanced: Whether the drop is that of balanced accuracy, not of top-1.
        seed: Seed of the samples of calibration and validation images.

    Returns:
        Metrics for the manifest: the chosen candidate, the repair step, its validation numbers and its integer proof.

    Raises:
        InputError: The model is damaged or was not exported by kdedge.
        StageError: onnxruntime would run a part of every INT8 model in float.
    """
    model = read_model(path)
    wanted = settings.calibration_images
    if wanted > len(train.labels):
        log(f"quantize: calibrating on all {len(train)} training {train.spec.unit}s, fewer than the requested {wanted}")
    picked = stratified_sample(train.labels, _LARGER * wanted if settings.compare_formats else wanted, seed)
    scored = stratified_sample(val.labels, SCORED_IMAGES, seed)
    groups = None if val.groups is None else val.groups[scored]
    validation = Validation(path, val.images[scored], val.labels[scored], limit_pp, balanced=balanced, groups=groups)
    quantizer = Quantizer.from_model(model, train.images[picked])

    chosen, trials, fp32_ms = search(
        quantizer, validation, settings.target, min(wanted, len(picked)), compare=settings.compare_formats
    )
    steps = repair(quantizer, chosen, validation, train_images=train.images if settings.qat else None)
    final = steps[-1]
    if settings.qat and (reason := why_not_fine_tuned(steps)):
        log(f"quantize: --qat changes nothing: {reason}")
    proof = final.trial.proof
    in_float = float_operators(proof, OP_TYPES, final.trial.float_layers)
    sensitivity = measure_sensitivity(final.quantizer, chosen.candidate, validation)
    write_atomic(out_dir / INT8_NAME, _labelled(final, settings.target, len(scored)))
    write_json(out_dir / "sensitivity.json", sensitivity)
    record = {
        "rule": RULE,
        "metric": "balanced" if balanced else "top1",
        "target": settings.target,
        "host": host_kind(),
        "chosen": chosen.candidate.name,
        "rung": final.name,
        "float_layers": list(final.trial.float_layers),
        "calibration_images": chosen.candidate.calibration_images,
        "validation_images": len(val.labels),
        "scored_images": len(scored),
        "fp32_top1_pct": round(validation.fp32_top1_pct, 3),
        "fp32_p50_ms": fp32_ms,
        "candidates": [trial.as_json() for trial in trials],
        "rungs": [step.as_json() for step in steps],
        "float_operators": in_float,
    }
    write_json(out_dir / "candidates.json", record)
    draw_figures({"latency": [], "quantization": {**record, "sensitivity": sensitivity}}, out_dir / "figures")
    if final.gate["verdict"] == "failed":
        of_metric = " of balanced accuracy" if balanced else ""
        warn(f"the INT8 model loses {final.gate['loss_pp']:.2f} pp{of_metric} on validation data, where the gate fails")
    result = final.trial.score
    log(
        f"quantize: {chosen.candidate.name}{'' if final is steps[0] else f' + {final.name}'}: validation top-1 "
        f"{result.top1_pct:.2f} % (FP32 {validation.fp32_top1_pct:.2f} %), logit SQNR {result.sqnr_db:.1f} dB, "
        f"{proof['integer_convs']} integer convolutions, {len(in_float)} operators in float; most sensitive: "
        f"{', '.join(sensitivity['dominant']) or 'no layer dominates'}"
    )
    for (kind, reason), count in Counter((row["type"], row["reason"]) for row in in_float).most_common():
        log(f"quantize: in float: {count} {kind}: {reason}")
    return {
        "candidate": asdict(chosen.candidate) | {"name": chosen.candidate.name},
        "target": settings.target,
        "rung": final.name,
        "float_layers": list(final.trial.float_layers),
        "validation": {"images": len(scored), **result.as_json()},
        "calibration_images": chosen.candidate.calibration_images,
        "bytes": len(final.trial.model),
        "proof": proof,
    }


def _labelled(final: RepairStep, target: str, images: int) -> bytes:
    """Return the model with target, repair step and validation gate in its metadata."""
    model = onnx.load_model_from_string(final.trial.model)
    metadata = {item.key: item.value for item in model.metadata_props}
    verdict = {key: final.gate[key] for key in ("verdict", "loss_pp", "loss_upper95_pp", "limit_pp")}
    metadata |= {
        "kdedge.target": target,
        "kdedge.target_note": TARGETS[target].note,
        "kdedge.rung": final.name,
        # On validation images; the report has the verdict on test images.
        "kdedge.validation_gate": json.dumps({"images": images, **verdict}),
    }
    if final.trial.float_layers:
        metadata["kdedge.float_layers"] = json.dumps(final.trial.float_layers)
    onnx.helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString(deterministic=True))

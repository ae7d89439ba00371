"""Builds the bundle: one flat folder with everything a device needs, if the gate passed.

Its ``predict.py`` needs only numpy and onnxruntime. ``kdedge verify`` checks it on any machine: it has golden inputs
with the expected logits of both models, and the stage adds a manifest with the SHA-256 of every file. The golden inputs
are validation images, never test images.
"""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.interval import wilson_interval_pct
from kdedge.benchmarks.report.content import warnings
from kdedge.benchmarks.report.details import c_memory, real_time, starts_from, unit
from kdedge.benchmarks.session import check_fits, open_model, run_model
from kdedge.benchmarks.units import format_ratio
from kdedge.errors import GateError
from kdedge.export.bundle.contents import COPIED, GOLDEN_INPUTS, GOLDEN_LOGITS, MODELS, RUNTIMES_FOLDER, SBOM
from kdedge.export.bundle.sbom import bill_of_materials
from kdedge.files import load_json, write_atomic, write_json
from kdedge.inputs import InputSpec
from kdedge.manifest import load_manifest
from kdedge.progress import log, warn

__all__ = ["GOLDEN_IMAGES", "build_bundle", "check_gate"]

GOLDEN_IMAGES = 16
_CLASSES_SHOWN = 20
_CLASS_HEAD = "| class | test {unit}s | FP32 recall | INT8 recall | 95 % interval | INT8 precision |"
_BECOME_SQUARE = {
    "squeeze": "resized without their aspect ratio",
    "crop": "cut to the largest square in their middle",
    "pad": "resized with their aspect ratio and padded by repeating their edges",
}
_GREY_WORDS = '- Images in color become grey: (19595 R + 38470 G + 7471 B + 32768) >> 16, Pillow\'s `convert("L")`.\n'
# The values of the search's choice that repair steps do not change.
_FORMAT = ("name", "activations", "weights", "per_channel", "reduce_range", "calibrator", "calibration_images")


def build_bundle(
    report: Mapping[str, Any],
    golden: npt.NDArray[Any],
    classes: list[str],
    inputs: Mapping[str, Path],
    out_dir: Path,
    *,
    spec: InputSpec,
) -> dict[str, Any]:
    """Build the bundle in ``out_dir`` from the results of the earlier stages.

    Args:
        report: The content of ``report.json``, after `check_gate`.
        golden: Golden inputs.
        classes: The class names, in the order of the logits.
        inputs: The directory of each earlier stage.
        out_dir: The folder to fill.
        spec: The input of the models.

    Returns:
        For the manifest: ``passed``, ``needs`` (the oldest onnxruntime that runs both models, their opset and IR
        version) and ``history`` (teacher, student, method, data hashes, quantization, gate).

    Raises:
        InputError: A model is damaged or does not fit the classes and the images.
    """
    from kdedge.export.graph import lowest_runtime

    passed = report["gate"]["verdict"] == "passed"
    for name, stage in COPIED.items():
        shutil.copyfile(inputs[stage] / name, out_dir / name)
    others = sorted((inputs["benchmark"] / RUNTIMES_FOLDER).glob("*"))
    for path in others:
        shutil.copyfile(path, out_dir / path.name)
    script = "standalone.py" if spec.kind == "image" else "standalone_signal.py"
    shutil.copyfile(Path(__file__).with_name(script), out_dir / "predict.py")

    _save_array(out_dir / GOLDEN_INPUTS, golden)
    for kind, name in MODELS.items():
        model = open_model(out_dir / name)
        check_fits(model, classes, spec)
        _save_array(out_dir / GOLDEN_LOGITS[kind], run_model(model, golden))
    write_atomic(out_dir / "labels.txt", ("\n".join(classes) + "\n").encode())
    write_json(out_dir / "preprocessing.json", model.spec.as_json())
    candidates = load_json(
        inputs["quantize"] / "candidates.json",
        ("chosen", "candidates", "calibration_images", "target", "rungs", "scored_images"),
    )
    history = _history(report, candidates, inputs)
    needs = lowest_runtime(out_dir / name for name in MODELS.values())
    made_with = (load_manifest(directory).get("versions", {}) for directory in inputs.values())
    write_json(out_dir / SBOM, bill_of_materials(out_dir, others, history, needs, made_with))
    card = _model_card(report, candidates, needs, classes, model.spec)
    write_atomic(out_dir / "MODEL_CARD.md", card.encode(errors="replace"))
    if not passed:
        warn("the bundle is marked as not passed: the gate is undecided")
    log(f"bundle: {sum(path.stat().st_size for path in out_dir.iterdir() if path.is_file()) / 1e6:.1f} MB")
    return {"passed": passed, "needs": needs, "history": history}


def check_gate(report: Mapping[str, Any], *, allow_undecided: bool) -> None:
    """Refuse a report whose gate did not pass.

    Args:
        report: The content of ``report.json``.
        allow_undecided: Whether an undecided gate is accepted.

    Raises:
        GateError: The gate failed, or is undecided and that is not allowed; the message has its reason.
    """
    gate = report["gate"]
    verdict = gate["verdict"]
    if verdict == "passed" or (verdict == "undecided" and allow_undecided):
        return
    if verdict == "undecided":
        of_groups = " of other groups" if gate.get("groups") else ""
        smallest = ", most of all of the smallest class" if gate.get("metric") == "balanced" else ""
        raise GateError(
            f"the gate is undecided: {gate['reason']}",
            f"give more test {unit(report)}s{of_groups}{smallest}, accept a larger drop (--limit-pp), or ship it as "
            "not passed with --allow-undecided",
        )
    raise GateError(
        f"the gate failed: {gate['reason']}", "candidates.json of the quantize stage lists the formats and repair steps"
    )


def _history(report: Mapping[str, Any], candidates: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Return the origin of the bundle: run, models, hashes of data and weights, quantization and gate."""
    hashes: dict[str, str] = {}
    for directory in inputs.values():
        hashes |= load_manifest(directory)["inputs"]
    exported = load_manifest(inputs["export"])
    source = {adopted: exported["config"]["model"]} if (adopted := exported["facts"].get("adopted")) else {}
    chosen = next(item for item in candidates["candidates"] if item["name"] == candidates["chosen"])
    return {
        "run": report["run"],
        "teacher": report["teacher"],
        "student": report["student"],
        "data": {key: value for key, value in hashes.items() if key.startswith("data/")},
        "weights": {key: value for key, value in hashes.items() if key.endswith(".safetensors")} | source,
        # Loss and SQNR are those of the shipped model after its repair step, on validation images.
        "quantization": {
            **{key: chosen[key] for key in _FORMAT},
            "target": candidates["target"],
            **candidates["rungs"][-1],
            "validation_images": candidates["scored_images"],
            "bytes": (inputs["quantize"] / MODELS["int8"]).stat().st_size,
        },
        "gate": report["gate"],
    }


def _model_card(
    report: Mapping[str, Any],
    candidates: Mapping[str, Any],
    needs: Mapping[str, Any],
    classes: list[str],
    spec: InputSpec,
) -> str:
    """Return the model card, from the numbers of the report."""
    words = _image_words(spec) if spec.kind == "image" else _signal_words(spec, report)
    accuracy, gate, sizes, student, host = (report[key] for key in ("accuracy", "gate", "size", "student", "host"))
    fp32, int8 = accuracy["onnx_fp32_top1_pct"], accuracy["onnx_int8_top1_pct"]
    status = "passed" if gate["verdict"] == "passed" else f"**{gate['verdict']}: shipped although not passed**"
    fp32_ci, int8_ci = (accuracy[f"onnx_{kind}_ci95_pct"] for kind in ("fp32", "int8"))
    step = candidates["rungs"][-1]["rung"]
    loss = f"{gate['loss_pp']:.2f} pp" + (" of balanced accuracy" if gate.get("metric") == "balanced" else "")
    repaired = "" if step == "search" else f", then {step}"
    begun = starts_from(student)
    start = f"; starts from: {begun}; epochs in this run: {student['epochs']}" if begun else ""
    origin = f"distilled from {report['teacher']['arch']} (method `{student['method']}`{start})"
    if source := student.get("adopted"):
        origin = f"from the file `{source}`, which kdedge did not train,"
    batch = min(row["batch"] for row in report["latency"])
    images = f"one {spec.unit}" if batch == 1 else f"a batch of {batch} {spec.unit}s"
    rows = [
        f"| {row['model']} | {row['provider']} | {row['threads']} | {_ms(row['p50_ms'])} "
        f"| {_ms(row['p99_ms'])} | {row['trust']['verdict']} |"
        for row in report["latency"]
        if row["batch"] == batch
    ]
    means = [
        (name, accuracy.get(f"fp32_{key}"), accuracy.get(key))
        for name, key in (("mean recall of the classes", "balanced_pct"), ("macro-F1", "macro_f1_pct"))
    ]
    balanced = "".join(f"| {name} | {a:.2f} % | {b:.2f} % |\n" for name, a, b in means if a is not None)
    warning = "".join(f"\n**{warning}.**\n" for warning in warnings(report))
    c_code = (
        f"- For microcontrollers: `kdedge export-c` writes C99; {memory}.\n" if (memory := c_memory(report)) else ""
    )
    shown = ", ".join(classes[:20]) + (f", … ({len(classes)} in all, see labels.txt)" if len(classes) > 20 else "")
    return f"""# Model card

{student["arch"]}: {words.kind} with {student["params"]:,} parameters and {student["macs"] / 1e6:.1f} million
multiply-accumulates per {spec.unit}, {origin}
and quantized to INT8 for the target `{candidates["target"]}` (`{candidates["chosen"]}`,
{candidates["calibration_images"]} calibration {spec.unit}s{repaired}).

{words.input}
- Requires onnxruntime {needs["onnxruntime"]} or newer (opset {needs["opset"]}, IR version {needs["ir_version"]}).
{c_code}- Classes: {shown}
- {"Calibrated" if source else "Trained"} on: {report["run"]["data"]}, seed {report["run"]["seed"]}

## Numbers

| | FP32 | INT8 |
|---|---|---|
| top-1 on {accuracy["n"]:,} test {spec.unit}s | {fp32:.2f} % | {int8:.2f} % |
| 95 % interval | {fp32_ci[0]:.2f} to {fp32_ci[1]:.2f} | {int8_ci[0]:.2f} to {int8_ci[1]:.2f} |
{balanced}| file | {sizes["fp32_bytes"]:,} bytes | {sizes["int8_bytes"]:,} bytes ({format_ratio(sizes["ratio"])}) |

Gate: {status}; passed: {str(gate["verdict"] == "passed").lower()}. INT8 loses {loss}, at most
{gate["loss_upper95_pp"]:.2f} pp with 95 % confidence; the limit is {gate["limit_pp"]:g} pp.
{warning}{_per_class(report, spec.unit)}
Latency of {images} on {host["cpu"]} ({host["cores"]} cores, onnxruntime {host["onnxruntime"]}):

| model | provider | threads | p50 ms | p99 ms | trust |
|---|---|---|---|---|---|
{chr(10).join(rows)}
{words.latency}
## Use

    {words.use}
    kdedge verify .                    # checks every file and recomputes the golden outputs

## Limitations

{words.limits}
- Latency is valid for the host above. `report.json` has all numbers and the measurement settings.
- `{GOLDEN_INPUTS}` has up to {GOLDEN_IMAGES} {spec.unit}s held out of the training data, for verification.
"""


class _Words(NamedTuple):
    """The parts of a model card that depend on the input."""

    kind: str
    input: str
    latency: str
    use: str
    limits: str


def _image_words(spec: InputSpec) -> _Words:
    size, mode = spec.size, spec.resize_mode
    square = _BECOME_SQUARE.get(mode, "resized with their aspect ratio and cut to their middle")
    return _Words(
        "an image classifier",
        f"- Input: `pixels`, uint8 {spec.color}, `[N, {size}, {size}, {len(spec.channels)}]`, as a decoder returns it. "
        "Output: `logits`, float32.\n"
        f"{_GREY_WORDS * spec.grey}"
        f"- Images of another shape are {square} (`{mode}`). `predict.py` and `kdedge predict` do it.",
        "",
        "python predict.py photo.jpg        # requires numpy and onnxruntime, and Pillow for image files",
        f"""- The model always predicts one of its classes, also for images of other things.
- Accuracy is valid for images like the training and test images, resized to {size} x {size}. Fairness, robustness to
  noise and other cameras were not tested.""",
    )


def _signal_words(spec: InputSpec, report: Mapping[str, Any]) -> _Words:
    rate = f" at {spec.rate_hz:g} Hz: {spec.window_s:.3g} s" if spec.rate_hz else ""
    return _Words(
        "a classifier of a signal",
        f"- Input: `signal`, float32, `[N, {spec.size}, {len(spec.channels)}]`, in the units of the training data; the "
        f"model normalises. Output: `logits`, float32.\n"
        f"- A window has {spec.size} samples{rate}. Channels, in this order: {', '.join(spec.channels)}.",
        f"\n{timing}.\n" if (timing := real_time(report)) else "",
        "python predict.py recording.csv    # requires numpy and onnxruntime",
        """- The model always predicts one of its classes, also for signals of other things.
- Accuracy is valid for recordings like the training and test recordings, with the same sensor, place and sampling rate.
  Robustness to noise, drift and other sensors was not tested.""",
    )


def _per_class(report: Mapping[str, Any], unit: str = "image") -> str:
    """Return a table of the classes with the lowest INT8 recall; empty for a report without classes."""
    rows = [row for row in report.get("per_class") or () if row["n"]]
    if not rows:
        return ""
    worst = sorted(rows, key=lambda row: row["int8_top1_pct"])[:_CLASSES_SHOWN]
    which = "every class" if len(worst) == len(rows) else f"the {len(worst)} worst of {len(rows)} classes"
    lines = [
        f"Recall and precision of {which}, in percent:",
        "",
        _CLASS_HEAD.format(unit=unit),
        "|---|---|---|---|---|---|",
    ]
    for row in worst:
        name = row["class"].replace("|", "&#124;")
        right = round(row["n"] * row["int8_top1_pct"] / 100)
        low, high = row.get("int8_ci95_pct") or wilson_interval_pct(right, row["n"])
        precision = "-" if row.get("int8_precision_pct") is None else f"{row['int8_precision_pct']:.2f}"
        recalls = f"{row['fp32_top1_pct']:.2f} | {row['int8_top1_pct']:.2f} | {low:.2f} to {high:.2f}"
        lines.append(f"| {name} | {row['n']:,} | {recalls} | {precision} |")
    return "\n".join(["", *lines, ""])


def _ms(value: float | None) -> str:
    """Format milliseconds; None is a percentile with too few samples."""
    return "-" if value is None else f"{value:.3f}"


def _save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as ``.npy`` without pickles."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())

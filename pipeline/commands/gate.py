"""The command ``gate``: the verdict on two models that kdedge need not have made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdedge.errors import GateError, InputError, command
from kdedge.pipeline.commands.failures import reported
from kdedge.pipeline.commands.flags import AsJson
from kdedge.pipeline.commands.model_input import (
    Layout,
    Mean,
    Name,
    Scale,
    Std,
    normalisation,
    open_models,
    preprocessing_of,
)

if TYPE_CHECKING:
    from kdedge.benchmarks.input_adapter import Classifier, Preprocessing
    from kdedge.benchmarks.prediction_files import Pairs

__all__ = ["app", "check_passed"]

app = typer.Typer()

_METRICS = ("top1", "balanced")
_POWERS = (0.8, 0.95)
_FILES = "give two prediction files (.csv, .npz) or two models (.onnx): kdedge gate FP32 INT8"


@app.command(
    help="Decide whether an INT8 model may replace its FP32 model, from two ONNX classifiers or from two prediction "
    "files of any runtime. Exit code 3: the gate failed or is undecided.",
    short_help="Decide whether an INT8 model may replace its FP32 model.",
    rich_help_panel="More commands: other models",
)
@reported
def gate(
    *,
    fp32: Annotated[Path | None, typer.Argument(help="FP32 model: .onnx, or its predictions: .csv, .npz.")] = None,
    int8: Annotated[Path | None, typer.Argument(help="INT8 model, or its predictions.")] = None,
    limit_pp: Annotated[
        float, typer.Option("--limit-pp", help="Maximum accepted INT8 accuracy drop, in percentage points.")
    ] = 0.5,
    metric: Annotated[
        str, typer.Option("--metric", help="top1, or balanced: the mean recall of the classes.", metavar="NAME")
    ] = "top1",
    data: Annotated[
        str, typer.Option("--data", help="Test images for two models: sample, cifar10 or a PATH, as for `kdedge data`.")
    ] = "",
    preprocessing: Name = "",
    mean: Mean = "",
    std: Std = "",
    scale: Scale = None,
    layout: Layout = "",
    resize: Annotated[
        str,
        typer.Option(
            "--resize",
            help="How images become square. Default: that of the model or of --preprocessing.",
            metavar="NAME",
        ),
    ] = "",
    image_size: Annotated[
        int, typer.Option("--image-size", min=0, help="Side length in pixels, if the model does not fix it.")
    ] = 0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the number of test images that the gate needs. Takes no files.")
    ] = False,
    discordance: Annotated[
        float,
        typer.Option("--discordance", help="For --plan: share of the images that only one model predicts correctly."),
    ] = 0.01,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
) -> None:
    """Print the verdict, or the number of images that it needs."""
    if not 0 < limit_pp <= 100:
        raise InputError(f"--limit-pp {limit_pp:g} is not above 0 and at most 100", "for example --limit-pp 0.5")
    if metric not in _METRICS:
        raise InputError(f"--metric {metric!r} is unknown", f"known: {', '.join(_METRICS)}")
    if as_json and markdown:
        raise InputError("--json and --markdown exclude each other", "give one of them")
    if plan:
        if fp32 or markdown:
            raise InputError(
                "--plan takes no files and no --markdown",
                "for example kdedge gate --plan --limit-pp 0.5 --discordance 0.01",
            )
        _print_plan(limit_pp, discordance, metric, as_json=as_json)
        return
    if fp32 is None or int8 is None:
        raise InputError("two models are compared, but fewer are given", _FILES)

    from kdedge.benchmarks.paired_gate import gate_markdown, gate_pairs, print_gate
    from kdedge.benchmarks.prediction_files import SUFFIXES, pair, read_predictions

    numbers = normalisation(mean, std, scale)
    kinds = {path.suffix.lower() for path in (fp32, int8)}
    if kinds == {".onnx"}:
        models = open_models((fp32, int8), layout, image_size)
        if models[0].quantized and not models[1].quantized:
            raise InputError(f"{fp32} is quantized and {int8} is not", f"swap them: {command('gate', int8, fp32)}")
        pairs = _pair(models, data, preprocessing_of(models, preprocessing, numbers, resize))
    elif kinds <= set(SUFFIXES):
        _refuse(
            {"--data": data, "--preprocessing": preprocessing, "--layout": layout, "--resize": resize}
            | {"--image-size": image_size or None}
            | numbers
        )
        pairs = pair(read_predictions(fp32), read_predictions(int8))
    else:
        raise InputError(f"{fp32} and {int8} are neither two models nor two prediction files", _FILES)
    result = gate_pairs(pairs, limit_pp, balanced=metric == "balanced")
    if as_json or markdown:
        print(json.dumps(result) + "\n" if as_json else gate_markdown(result), end="")
    else:
        print_gate(result)
    check_passed(result)


def _refuse(options: Mapping[str, Any]) -> None:
    """Refuse options of images with prediction files.

    Raises:
        InputError: One is given.
    """
    if given := [flag for flag, value in options.items() if value not in ("", None)]:
        raise InputError(f"{given[0]} is for two models; prediction files have no images", "leave it out")


def _pair(models: "Sequence[Classifier]", data: str, preprocessing: "Preprocessing") -> "Pairs":
    from kdedge.pipeline.gate_models import pair_models

    if not data:
        raise InputError("two models need test images", "give --data PATH: class folders, a table or a .npz file")
    return pair_models(models[0], models[1], data, preprocessing)


def check_passed(result: Mapping[str, Any], *, otherwise: str = "") -> None:
    """Raise an error unless the gate passed; of an undecided loss the hint is the command that plans more images.

    Args:
        result: From `kdedge.benchmarks.paired_gate.gate_pairs`.
        otherwise: Ends the hint of an undecided gate.
    """
    gate = result["gate"]
    if gate["verdict"] == "failed":
        check = "check the order of the classes and, of models, --preprocessing" if gate["cause"] == "learned" else ""
        raise GateError("the gate failed", check)
    if gate["verdict"] == "undecided":
        if gate["groups"] is not None and gate["cause"] in ("loss", "groups"):
            raise GateError("the gate is undecided", f"add test images of other groups{otherwise}")
        hint = "add test images" + (", most of all of the smallest class" if result["metric"] == "balanced" else "")
        if gate["cause"] == "loss" and result["metric"] == "top1":
            discordance = (gate["fp32_only_right"] + gate["int8_only_right"]) / result["images"]
            options = f"--limit-pp {gate['limit_pp']:g} --discordance {discordance:.3g}"
            hint += f"; for their number: kdedge gate --plan {options}"
        raise GateError("the gate is undecided", hint + otherwise)


def _print_plan(limit_pp: float, discordance: float, metric: str, *, as_json: bool) -> None:
    from kdedge.benchmarks.gate import images_to_pass

    if not 0 <= discordance <= 1:
        raise InputError(f"--discordance {discordance:g} is not from 0 to 1", "for example --discordance 0.01")
    images = {power: images_to_pass(limit_pp, discordance, power) for power in _POWERS}
    if as_json:
        rows = [{"power": power, "images": count} for power, count in images.items()]
        assumed = {"metric": metric, "limit_pp": limit_pp, "discordance": discordance, "true_loss_pp": 0}
        print(json.dumps({**assumed, "plan": rows}))
        return
    print(
        f"Assumed: INT8 in truth loses nothing, and {100 * discordance:g} % of the images are predicted correctly by "
        f"only one model."
    )
    for power, count in images.items():
        enough = "no number of images lets the gate pass" if count is None else f"about {count:,} images let it pass"
        print(f"With a probability of {100 * power:g} %, {enough} at a limit of {limit_pp:g} pp.")
    if metric == "balanced":
        print("All classes need equally many of them: the number of images divided by the number of classes.")

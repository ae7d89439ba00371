"""The command ``gate``: the verdict on two models that kdedge need not have made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kdedge.errors import GateError, InputError
from kdedge.pipeline.commands.failures import reported
from kdedge.pipeline.commands.flags import AsJson

__all__ = ["app"]

app = typer.Typer()

_METRICS = ("top1", "balanced")
_POWERS = (0.8, 0.95)
_FILES = "give two prediction files (.csv, .npz): kdedge gate FP32 INT8"


@app.command(
    help="Decide whether an INT8 model may replace its FP32 model: two prediction files of any runtime. Exit code 3: "
    "the gate failed or is undecided.",
    short_help="Decide whether an INT8 model may replace its FP32 model.",
    rich_help_panel="More commands: other models",
)
@reported
def gate(
    *,
    fp32: Annotated[Path | None, typer.Argument(help="Predictions of the FP32 model: .csv or .npz.")] = None,
    int8: Annotated[Path | None, typer.Argument(help="The same of the INT8 model.")] = None,
    limit_pp: Annotated[
        float, typer.Option("--limit-pp", help="Maximum accepted INT8 accuracy drop, in percentage points.")
    ] = 0.5,
    metric: Annotated[
        str, typer.Option("--metric", help="top1, or balanced: the mean recall of the classes.", metavar="NAME")
    ] = "top1",
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
        if fp32 or markdown or metric != "top1":
            raise InputError(
                "--plan takes no files, no --markdown and only the metric top1",
                "for example kdedge gate --plan --limit-pp 0.5 --discordance 0.01",
            )
        _print_plan(limit_pp, discordance, as_json=as_json)
        return
    if fp32 is None or int8 is None:
        raise InputError("two models are compared, but fewer are given", _FILES)

    from kdedge.benchmarks.paired_gate import gate_markdown, gate_pairs, print_gate
    from kdedge.benchmarks.prediction_files import SUFFIXES, pair, read_predictions

    for path in (fp32, int8):
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} does not end in {' or '.join(SUFFIXES)}", _FILES)
    result = gate_pairs(pair(read_predictions(fp32), read_predictions(int8)), limit_pp, balanced=metric == "balanced")
    if as_json:
        print(json.dumps(result))
    elif markdown:
        print(gate_markdown(result), end="")
    else:
        print_gate(result)
    _check_passed(result)


def _check_passed(result: Mapping[str, Any]) -> None:
    """Raise an error unless the gate passed; of an undecided one the hint is the command that plans more images."""
    verdict, limit_pp = result["gate"]["verdict"], result["gate"]["limit_pp"]
    if verdict == "failed":
        raise GateError("the gate failed")
    if verdict == "undecided":
        discordant = result["gate"]["fp32_only_right"] + result["gate"]["int8_only_right"]
        raise GateError(
            "the gate is undecided",
            f"more test images decide; for their number: kdedge gate --plan --limit-pp {limit_pp:g} "
            f"--discordance {discordant / result['images']:.3g}",
        )


def _print_plan(limit_pp: float, discordance: float, *, as_json: bool) -> None:
    from kdedge.benchmarks.gate import images_to_pass

    if not 0 <= discordance <= 1:
        raise InputError(f"--discordance {discordance:g} is not from 0 to 1", "for example --discordance 0.01")
    images = {power: images_to_pass(limit_pp, discordance, power) for power in _POWERS}
    if as_json:
        rows = [{"power": power, "images": count} for power, count in images.items()]
        print(json.dumps({"limit_pp": limit_pp, "discordance": discordance, "true_loss_pp": 0, "plan": rows}))
        return
    print(
        f"Assumed: INT8 in truth loses nothing, and {100 * discordance:g} % of the images are predicted correctly by "
        f"only one model."
    )
    for power, count in images.items():
        enough = "no number of images lets the gate pass" if count is None else f"about {count:,} images let it pass"
        print(f"With a probability of {100 * power:g} %, {enough} at a limit of {limit_pp:g} pp.")

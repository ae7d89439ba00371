"""Options that describe the input of an ONNX classifier that kdedge did not make: ``gate`` and ``quantize``."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdedge.errors import InputError
from kdedge.parsing import closest
from kdedge.pipeline.commands.flags import DEFAULT_OUT, Fields, Options
from kdedge.pipeline.config import SECTIONS
from kdedge.pipeline.config.checks import RUN_FLAGS, Flags
from kdedge.preprocessing import check_resize

if TYPE_CHECKING:
    from kdedge.benchmarks.input_adapter import Classifier, Preprocessing

__all__ = [
    "OTHER_MODEL",
    "Layout",
    "Mean",
    "Name",
    "Scale",
    "Std",
    "named",
    "normalisation",
    "of_model",
    "open_models",
    "preprocessing_of",
]

Name = Annotated[
    str,
    typer.Option(
        "--preprocessing",
        help="Preprocessing of models that take floats: kdedge, torchvision, timm, keras or ultralytics.",
        metavar="NAME",
    ),
]
Mean = Annotated[
    str, typer.Option("--mean", help="Subtracted from the scaled pixels: one number, or R,G,B.", metavar="FLOATS")
]
Std = Annotated[str, typer.Option("--std", help="Divides the difference: one number, or R,G,B.", metavar="FLOATS")]
Scale = Annotated[
    float | None,
    typer.Option("--scale", help="Factor of the pixels (0 to 255). Default: 1/255; of keras 1/127.5."),
]
Layout = Annotated[str, typer.Option("--layout", help="NCHW or NHWC, if the model does not show it.", metavar="NAME")]


OTHER_MODEL: Options = {
    "model": (
        Annotated[Path | None, typer.Argument(help="ONNX classifier to quantize. Default: the run at --out.")],
        None,
    ),
    "preprocessing": (Name, ""),
    "mean": (Mean, ""),
    "std": (Std, ""),
    "scale": (Scale, None),
    "layout": (Layout, ""),
}
"""Arguments of a command that takes such a classifier or a run."""


def normalisation(mean: str, std: str, scale: float | None) -> dict[str, Any]:
    """Return the numbers of the options by flag; None: not given.

    Raises:
        InputError: A text is neither one number nor three, or a number cannot be used.
    """
    return {"--mean": _numbers("--mean", mean), "--std": _numbers("--std", std), "--scale": scale}


def open_models(paths: Sequence[Path], layout: str, image_size: int) -> "list[Classifier]":
    """Open classifiers.

    Raises:
        InputError: The layout is unknown, or a file is not a classifier that fits the options.
    """
    from kdedge.benchmarks.input_adapter import LAYOUTS, open_classifier

    if layout and layout.upper() not in LAYOUTS:
        raise InputError(f"--layout {layout!r} is unknown", f"known: {', '.join(LAYOUTS)}")
    return [open_classifier(path, layout=layout.upper(), image_size=image_size) for path in paths]


def of_model(given: dict[str, Any], fields: Fields) -> Flags:
    """Take the image size and the default of ``--out`` from the model that is quantized.

    The resize is that of its preprocessing, or of a model of kdedge its own.

    Raises:
        InputError: The file is not a classifier in float, or an option is only for one.
    """
    given["out"] = given["out"] or (Path("artifacts") / given["model"].stem if given["model"] else DEFAULT_OUT)
    if given["model"]:
        data = fields.setdefault("data", {})
        model = open_models([given["model"]], given["layout"], data.get("image_size", 0))[0]
        if model.quantized:
            raise InputError(f"{given['model']} is already quantized", "give the FP32 model that it was made from")
        data["image_size"] = model.image_size
        if (color := data.setdefault("color", "rgb")) != "rgb":
            raise InputError(f"--color {color} is for a student of a run; {given['model']} takes RGB", "leave it out")
        if given["preprocessing"]:
            data.setdefault("resize", named(given["preprocessing"]).resize_mode)
        elif model.class_names and model.resize_mode:
            data.setdefault("resize", model.resize_mode)
        return RUN_FLAGS
    if given["layout"]:  # of windows
        fields.setdefault("data", {})["layout"] = given["layout"]
    wrong = [f"--{key}" for key in ("preprocessing", "mean", "std", "scale") if given[key] not in ("", None)]
    for section in ("benchmark", "bundle"):
        known = {item.name: item.metadata["flag"] for item in dataclasses.fields(SECTIONS[section])}
        wrong += [known[name] for name in fields.get(section, {}) if name not in ("limit_pp", "metric")]
    if wrong:
        raise InputError(f"{wrong[0]} is for a MODEL.onnx that kdedge did not train", "leave it out")
    return RUN_FLAGS


def named(name: str) -> "Preprocessing":
    """Return the preprocessing of this name.

    Raises:
        InputError: The name is unknown.
    """
    from kdedge.benchmarks.input_adapter import PREPROCESSING

    if name not in PREPROCESSING:
        known = ", ".join(PREPROCESSING)
        raise InputError(f"--preprocessing {name!r} is unknown{closest(name, PREPROCESSING)}", f"known: {known}")
    return PREPROCESSING[name]


def preprocessing_of(
    models: "Sequence[Classifier]", name: str, numbers: Mapping[str, Any], resize: str = ""
) -> "Preprocessing":
    """Return the preprocessing that the options describe.

    Raises:
        InputError: A name is unknown, a model takes floats and no option describes them, or none does and one has.
    """
    from kdedge.benchmarks.input_adapter import PREPROCESSING

    usual = named(name or "kdedge")
    if resize:
        check_resize(resize, "--resize")
    elif not name:
        resize = next((model.resize_mode for model in models if model.resize_mode), "")
    given = {flag.removeprefix("--"): value for flag, value in numbers.items() if value is not None}
    if not 0 < given.get("scale", 1) < math.inf:
        raise InputError(f"--scale {given['scale']:g} is not a number above 0", "for example --scale 0.00392157")
    floats = [model for model in models if model.takes_floats]
    if floats and not name and not given:
        raise InputError(
            f"{floats[0].path} takes floats, and the file does not describe the preprocessing",
            f"give --preprocessing ({', '.join(PREPROCESSING)}), or --mean, --std and --scale as in training",
        )
    if given and not floats:
        raise InputError(
            f"--{next(iter(given))} has no effect: models that take uint8 pixels have no preprocessing", "leave it out"
        )
    return dataclasses.replace(usual, resize_mode=resize or usual.resize_mode, **given)


def _numbers(flag: str, text: str) -> tuple[float, float, float] | None:
    """Return the numbers of the three colours; None: not given.

    Raises:
        InputError: The text is neither one number nor three, or a number cannot be used.
    """
    if not text:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(map(math.isfinite, values)) or (flag == "--std" and min(values) <= 0):
        least = " above 0" if flag == "--std" else ""
        raise InputError(f"{flag} {text!r} is not one number{least} or three", f"for example {flag} 0.485,0.456,0.406")
    return values[0], values[1], values[2]

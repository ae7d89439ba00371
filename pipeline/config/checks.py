"""Checks the values of a configuration, each and in combination."""

import dataclasses
from typing import Any, NamedTuple

from kdedge.errors import InputError
from kdedge.parsing import closest
from kdedge.pipeline.data.options import NAMES, WINDOWS, DataConfig
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.models.registry import STUDENTS, prunable_widths
from kdedge.pipeline.training.options import SIGNAL_LEVELS

__all__ = ["ABLATE_FLAGS", "COMPARE_FLAGS", "RUN_ALL_FLAGS", "RUN_FLAGS", "Flags", "check_value", "conflicts"]


class Flags(NamedTuple):
    """A command's names of options that differ between commands, and whether it takes several students."""

    epochs: str = "--distill-epochs"
    method: str = "--method"
    several_students: bool = False


RUN_FLAGS = Flags()
RUN_ALL_FLAGS = Flags(several_students=True)
COMPARE_FLAGS = Flags("--epochs", "--methods")
ABLATE_FLAGS = Flags("--epochs")


def check_value(section: str, item: "dataclasses.Field[Any]", value: Any, problems: list[str]) -> Any:
    """Return ``value`` in the type of the field; append errors to ``problems``."""
    name = f"{item.metadata['flag'] or item.name} ([{section}] {item.name})"
    wanted = item.metadata["kind"]
    if value is None and item.default is None:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted:
        problems.append(f"{name} = {value!r}: expected {wanted.__name__}")
        return value
    least, most, choices = (item.metadata[key] for key in ("least", "most", "choices"))
    if item.metadata["parse"]:
        try:
            item.metadata["parse"](value, item.metadata["flag"])
        except InputError as error:
            problems.append(str(error))
    named = [value]
    if item.metadata["several"]:
        named = [part.strip() for part in value.split(",")]
        value = ",".join(named)
    if choices and (unknown := [part for part in named if part not in choices]):
        problems.append(f"{name} = {value!r}{closest(str(unknown[0]), choices)}: expected one of {', '.join(choices)}")
    # Also true for NaN.
    if (least is not None and not value >= least) or (most is not None and not value <= most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        problems.append(f"{name} = {value!r} is out of range: expected {bounds}")
    return value


def conflicts(data: DataConfig, distill: DistillConfig, flags: Flags = RUN_FLAGS) -> list[str]:
    """Return the contradictions between options that are valid on their own."""
    found = []
    if data.dir and data.source != "cifar10":
        found.append(f"--data-dir ([data] dir) is for --data cifar10; --data {data.source} does not read it")
    if data.color == "grey" and (data.source in NAMES or data.source.startswith(WINDOWS)):
        found.append(f"--color grey is for images of your own, not for --data {data.source}")
    if distill.augment == "none" and distill.flip:
        found.append("--augment none mirrors no images: leave out --flip, or use --augment light")
    if distill.augment == "strong" and distill.mix:
        found.append("--augment strong mixes images: leave out --mix, or use --augment light")
    found += _signal_conflicts(data, distill) if data.source.startswith(WINDOWS) else _image_conflicts(data, distill)
    if "," in distill.student:
        if not flags.several_students:
            found.append(f"only `kdedge run-all` takes several students: name one of --student {distill.student}")
        if distill.weights:
            found.append(f"--student-weights are weights of one student: name one of --student {distill.student}")
    if distill.prune and not distill.weights:
        found.append("--prune takes channels of a trained student: name its weights with --student-weights")
    if distill.prune and (whole := [name for name in distill.student.split(",") if not prunable_widths(name)]):
        found.append(f"--student {whole[0]} cannot be pruned (--prune): only students of five convolutions can")
    if not distill.epochs:
        if not distill.weights:
            found.append(f"{flags.epochs} 0 uses trained weights unchanged: name them with --student-weights")
        return found
    return found + _hint_conflicts(distill, flags)


def _signal_conflicts(data: DataConfig, distill: DistillConfig) -> list[str]:
    """Return the options of images that are given with windows of a signal."""
    default = DataConfig()
    given = {
        "--image-size": data.image_size != default.image_size,
        "--resize": data.resize != default.resize,
        "--flip": distill.flip,
        f"--augment {distill.augment}": distill.augment not in SIGNAL_LEVELS,
        "--mix": distill.mix,
        "--mean-of-flips": distill.mean_of_flips,
    }
    found = [f"{flag} is for images; --data {data.source} has windows of a signal" for flag in given if given[flag]]
    return found + _other_students(distill, "windows of a signal", signal=True)


def _image_conflicts(data: DataConfig, distill: DistillConfig) -> list[str]:
    """Return the options of signals that are given with images."""
    given = {"--window": data.window, "--stride": data.stride, "--layout": data.layout, "--rate": data.rate}
    given["--groups"] = data.groups
    found = [
        f"{flag} is for --data windows:PATH; --data {data.source} does not read it" for flag in given if given[flag]
    ]
    return found + _other_students(distill, "images", signal=False)


def _other_students(distill: DistillConfig, what: str, *, signal: bool) -> list[str]:
    """Return an error for every student that is for other inputs than the data."""
    fitting = " or ".join(name for name, spec in STUDENTS.items() if spec.signal == signal)
    wrong = [name for name in distill.student.split(",") if STUDENTS[name].signal != signal]
    return [f"--student {name} is not for {what}: use {fitting}" for name in wrong]


def _hint_conflicts(distill: DistillConfig, flags: Flags) -> list[str]:
    """Return the contradictions between options of hints."""
    found = []
    method, hint_only = METHODS[distill.method], distill.hint_only_epochs
    if method.blocks and hint_only >= distill.epochs > 0:
        found.append(
            f"{hint_only} hint-only epochs (--hint-epochs) leave none of {distill.epochs} ({flags.epochs}): "
            f"lower the first, raise the second, or leave out the method {distill.method}"
        )
    if method.dynamic and distill.rechoose_epochs >= distill.epochs > 0:
        found.append(
            f"{flags.method} {distill.method} would never choose again: --rechoose-epochs {distill.rechoose_epochs} "
            f"is not below {distill.epochs} ({flags.epochs}): lower the first, raise the second, or "
            "leave out that method"
        )
    if method.blocks and not distill.beta:
        found.append(f"{flags.method} {distill.method} uses hints, and --beta 0 disables them: use {flags.method} kd")
    return found

"""The initial weights of a student: whitening, those of trained students, or the best channels of a wider one."""

from pathlib import Path
from typing import Any, NamedTuple

from kdedge.errors import InputError
from kdedge.files import file_sha256, load_json
from kdedge.inputs import InputSpec
from kdedge.pipeline.config import Config
from kdedge.pipeline.distill.pruning import (
    Widths,
    best_channels,
    channel_scores,
    cost_of,
    narrower,
    slice_channels,
)
from kdedge.pipeline.distill.trainer import first_batches
from kdedge.pipeline.models.initial import initialise
from kdedge.pipeline.models.load import STUDENT_DESCRIPTION
from kdedge.pipeline.models.registry import STUDENTS, LiteSpec, prunable_widths
from kdedge.pipeline.models.student import Student, build_student
from kdedge.pipeline.models.weights import load_mean, load_weights
from kdedge.pipeline.training.batch_norms import refresh_batch_norms
from kdedge.pipeline.training.batches import Batches, place
from kdedge.pipeline.training.device import autocast
from kdedge.progress import log

__all__ = ["StudentStart", "start_student"]

_BATCHES = 20  # for the scores of channels


class StudentStart(NamedTuple):
    """A student with its initial weights.

    Attributes:
        student: The student on its device.
        weights_sha256: Hashes of the weight files.
        pruned: How it was pruned: ``from``, ``widths`` and ``by``; empty if it was not.
        widths: Its widths, if they may differ from those of the registered student.
    """

    student: Student
    weights_sha256: list[str]
    pruned: dict[str, Any]
    widths: Widths = ()


class _Given(NamedTuple):
    """A student with given weights: its widths if it has five convolutions, and whether it will be pruned."""

    student: Student
    widths: Widths
    prunes: bool


def start_student(student: Student, config: Config, inputs: InputSpec, batches: Batches) -> StudentStart:
    """Give a student its initial weights; a pruned one replaces it.

    Args:
        student: The registered student, with random weights.
        config: The configuration.
        inputs: The inputs of the student.
        batches: The training set.

    Raises:
        InputError: The weights do not fit.
    """
    settings, paths = config.distill, config.distill.weight_files
    if not paths:
        return StudentStart(_untrained(student, config, batches), [], {})
    hashes = [file_sha256(path) for path in paths]
    wide, found, prunes = load_given(student, config, inputs)
    own, classes = prunable_widths(settings.student), student.classifier.out_features
    place(wide, batches.device)
    if not prunes:
        if len(paths) > 1:
            # The mean of several networks needs new statistics (Izmailov et al., arXiv:1803.05407, sec. 3.2).
            _refresh(wide, config, batches)
        return StudentStart(wide, hashes, {}, found if found != own else ())
    scratch = settings.prune_by == "scratch"
    with autocast(config.runtime):
        score = "taylor" if scratch else settings.prune_by
        scores = channel_scores(wide.eval(), first_batches(batches, _BATCHES), score)
    widths = narrower(found, scores, cost_of(wide, inputs), settings.prune) if settings.prune else own
    narrow = build_student(settings.student, classes, inputs, widths)
    if scratch:
        _untrained(narrow, config, batches)
    else:
        slice_channels(wide, place(narrow, batches.device), best_channels(scores, widths))
        _refresh(narrow, config, batches)
    log(f"student: {_text(widths)} of {_text(found)} channels, by {settings.prune_by}")
    pruned = {"from": list(found), "widths": list(widths), "by": settings.prune_by}
    return StudentStart(narrow, hashes, pruned, widths)


def load_given(student: Student, config: Config, inputs: InputSpec) -> _Given:
    """Return a student with the weights of ``--student-weights``.

    Args:
        student: The registered student. It gets the weights, unless they are of one that was or will be pruned.
        config: The configuration, with such weights.
        inputs: The inputs of the student.

    Raises:
        InputError: The weights do not fit.
    """
    settings, paths = config.distill, config.distill.weight_files
    classes = student.classifier.out_features
    own, found = prunable_widths(settings.student), _widths_in(paths[0], settings.student)
    other = len(found) == len(own) and found != own
    wider = other and all(a >= b for a, b in zip(found, own, strict=True))
    prunes = bool(settings.prune) or wider
    if prunes and not found:
        raise InputError(
            f"--student-weights {paths[0]} has no student of five convolutions to prune",
            f"give student.safetensors of a run with --student {settings.student} or a wider one",
        )
    if prunes:
        _check_wiring(paths[0], settings.student)
    elif other and not _was_pruned(paths[0], settings.student):
        raise InputError(
            f"--student-weights {paths[0]} has a student of {_text(found)} channels; --student {settings.student} has "
            f"{_text(own)}",
            f"give the --student of its run; if it is a pruned {settings.student}, keep {STUDENT_DESCRIPTION} next to "
            "its weights",
        )
    if prunes or other:
        student = build_student(settings.student, classes, inputs, found)
    load_mean(student, paths, f"a {settings.student!r} student with {classes} classes")
    return _Given(student, found, prunes)


def _untrained(student: Student, config: Config, batches: Batches) -> Student:
    """Return a student on its device with the weights that an untrained one begins with."""
    if config.distill.init == "whitening" and not batches.split.signal:
        initialise(student, batches.split.images)
    return place(student, batches.device)


def _text(widths: Widths) -> str:
    return "-".join(map(str, widths))


def _refresh(student: Student, config: Config, batches: Batches) -> None:
    with autocast(config.runtime):
        early = first_batches(batches, config.distill.scan_batches)
        refresh_batch_norms(student, [batch.pixels for batch in early])


def _widths_in(path: Path, name: str) -> Widths:
    """Return the widths of the student in a weight file for a student of five convolutions; empty for any other."""
    weights = load_weights(path)
    convs = [weights.get(f"blocks.{index}.conv.weight") for index in range(len(prunable_widths(name)))]
    return tuple(conv.shape[0] for conv in convs if conv is not None and conv.ndim == 4)


def _described(path: Path) -> dict[str, Any]:
    """Return the description in the folder of a weight file; empty: there is none."""
    described = path.with_name(STUDENT_DESCRIPTION)
    return load_json(described, ("arch",)) if described.is_file() else {}


def _was_pruned(path: Path, name: str) -> bool:
    """Return whether a weight file is of a pruned student of this name, by the description in its folder."""
    described = _described(path)
    return described.get("arch") == name and "widths" in described


def _check_wiring(path: Path, name: str) -> None:
    """Refuse the weights of a student that pools elsewhere, by the description in their folder."""
    known = _described(path).get("arch", name)
    spec, other = STUDENTS[name], STUDENTS.get(known)
    if isinstance(spec, LiteSpec) and isinstance(other, LiteSpec) and spec.pool_after != other.pool_after:
        raise InputError(
            f"--student-weights {path} is of the student {known}, which pools behind other convolutions than {name}",
            f"use --student {known}",
        )

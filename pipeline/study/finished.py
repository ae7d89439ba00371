"""Finished cells in the directory of a study: which ones a command keeps, adds to its tables or refuses to replace.

A finished cell is kept if its options, images and teacher are those of the command. Other finished cells are replaced
only with ``--force``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.manifest import load_manifest, output_damage
from kdedge.ownership import MANIFEST
from kdedge.pipeline.changes import changed_keys
from kdedge.pipeline.config import SECTIONS, Config
from kdedge.pipeline.config.build import RENAMED
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.study.cells import Cell, Study
from kdedge.pipeline.unfinished import read_divergence
from kdedge.progress import warn_once

__all__ = ["begun_elsewhere", "check_cells_kept", "check_teacher_kept", "divergence", "is_finished", "with_finished"]

_FINISHED = f"e*/seed*/*/distill/{MANIFEST}"
_FLAGS = {
    f"config.{section}.{item.name}": item.metadata["flag"]
    for section, kind in SECTIONS.items()
    for item in dataclasses.fields(kind)
}
_FLAGS |= {  # manifests record these options by their old names
    f"config.{section}.{old}": _FLAGS[f"config.{section}.{new}"]
    for section in SECTIONS
    for old, new in RENAMED.get(section, {}).items()
}


def check_teacher_kept(config: Config, out: Path) -> None:
    """Refuse to replace the teacher of a study that has finished cells.

    Raises:
        InputError: The teacher was made with other options or is damaged, or it is in another directory.
    """
    finished = len(list(out.glob(_FINISHED)))
    if not finished:
        return
    try:
        manifest = load_manifest(out / "teacher")
    except InputError:
        raise InputError(
            f"the teacher of {_counted(finished)} in {out} is in another directory",
            "name it with --teacher-dir, or use another --out, or --force to train another teacher",
        ) from None
    if changes := _changes("teacher", manifest, config):
        raise _refusal(finished, out, f"a teacher of {_described(changes)}")
    if damage := output_damage(out / "teacher", manifest):
        raise InputError(
            f"the teacher of {_counted(finished)} in {out}: {damage} since it was trained",
            "restore it, or use another --out, or --force to train another teacher",
        )


def check_cells_kept(cells: Sequence[Cell], out: Path, teacher: Mapping[str, Any] | None) -> None:
    """Refuse to replace finished cells of other options, images or another teacher.

    Args:
        cells: The cells of the command.
        out: Directory of the study.
        teacher: Manifest of their teacher (None: not trained yet).

    Raises:
        InputError: A finished cell would be replaced.
    """
    others = [changes for cell in cells if (changes := _made_otherwise(cell, out, teacher))]
    if others:
        raise _refusal(len(others), out, _described(others[0]))


def is_finished(cell: Cell, out: Path, teacher: Mapping[str, Any]) -> bool:
    """Return whether a cell has a student; arguments as of `check_cells_kept`."""
    return _made_otherwise(cell, out, teacher) == [] and not _damaged(cell.directory(out))


def divergence(cell: Cell, out: Path, teacher: Mapping[str, Any]) -> str:
    """Return why the training of a cell diverged, or an empty string; arguments as of `check_cells_kept`."""
    wanted, reason = read_divergence(cell.directory(out), "distill") or ({}, "")
    return "" if reason and _changes("distill", wanted, cell.config, teacher) else reason


def begun_elsewhere(cells: Sequence[Cell], out: Path) -> list[str]:
    """Return the directories of cells that other commands began and did not finish: interrupted, or diverged."""
    directories = {cell.directory(out) for cell in cells}
    begun = (path.parent for path in sorted(out.glob("e*/seed*/*/.distill.partial")))
    finished = {path.parents[1] for path in out.glob(_FINISHED)}
    return [path.relative_to(out).as_posix() for path in begun if path not in directories | finished]


def _damaged(directory: Path) -> bool:
    return bool(output_damage(directory / "distill", load_manifest(directory / "distill")))


def _made_otherwise(cell: Cell, out: Path, teacher: Mapping[str, Any] | None) -> list[str] | None:
    """Return the dotted keys in which the finished cell differs (None: it is not finished)."""
    try:
        manifest = load_manifest(cell.directory(out) / "distill")
    except InputError:
        return None
    return _changes("distill", manifest, cell.config, teacher)


def with_finished(
    cells: Sequence[Cell], study: Study, config: Config, out: Path, teacher: Mapping[str, Any]
) -> list[Cell]:
    """Add the finished cells of a study that differ only in name, length and seed; sort all of them.

    Args:
        cells: The cells of the command.
        study: The kind of study.
        config: Options that all cells share.
        out: Directory of the study.
        teacher: Manifest of their teacher.
    """
    directories = {cell.directory(out) for cell in cells}
    found = list(cells)
    for path in sorted(out.glob(_FINISHED)):
        directory = path.parents[1]
        if directory in directories:
            continue
        cell, reason = _finished_cell(directory, study, config, out, teacher)
        if cell:
            found.append(cell)
        else:
            warn_once(f"{directory} is left out of the tables: {reason}")
    # The control is the first of the names, so that every other cell is compared with it when it is done.
    order = {name: index for index, name in enumerate(study.names)}
    return sorted(found, key=lambda cell: (cell.config.distill.epochs, cell.config.runtime.seed, order[cell.name]))


def _finished_cell(
    directory: Path, study: Study, config: Config, out: Path, teacher: Mapping[str, Any]
) -> tuple[Cell | None, str]:
    """Return the cell in a directory, or why it is not part of this study."""
    if directory.name not in study.names:
        return None, "it is of another kind of study, or its base has other options"
    try:
        manifest = load_manifest(directory / "distill")
        made = manifest["config"]
        cell = study.make(config, directory.name, made["distill"]["epochs"], made["runtime"]["seed"])
    except (InputError, KeyError, TypeError) as error:
        return None, f"{error}"
    if cell.directory(out) != directory:
        return None, f"it contains {cell}"
    if changes := _changes("distill", manifest, cell.config, teacher):
        return None, f"it was made with {_described(changes)}"
    if damage := output_damage(directory / "distill", manifest):
        return None, damage
    return cell, ""


def _changes(
    stage: str, manifest: Mapping[str, Any], config: Config, teacher: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the dotted keys in which a finished stage differs from what the command would make."""
    spec = STAGES[stage]
    inputs = {f"data/{part}": digest for part, digest in spec.data(config).items()}
    recorded = manifest["inputs"]
    if teacher:
        inputs |= {f"teacher/{name}": digest for name, digest in teacher["outputs"].items()}
    else:
        recorded = {name: digest for name, digest in recorded.items() if name in inputs}
    wanted = {"config": spec.fingerprint(config), "inputs": inputs}
    changes = changed_keys({"config": manifest["config"], "inputs": recorded}, wanted)
    # Hosts of one study may have other CPUs; the page names them. A teacher is the same for all cells.
    return [key for key in changes if not (stage == "distill" and key == "config.runtime.isa")]


def _described(changes: Sequence[str]) -> str:
    """Describe the first change; a recipe before the options that it sets."""
    first = "config.distill.recipe" if "config.distill.recipe" in changes else changes[0]
    if first.startswith("inputs."):
        return "another teacher" if first.startswith("inputs.teacher/") else "other data"
    return f"another {_FLAGS.get(first) or first.rpartition('.')[2]}"


def _refusal(count: int, out: Path, otherwise: str) -> InputError:
    return InputError(
        f"{_counted(count)} in {out} would be replaced: made with {otherwise}",
        "use another --out, or --force to replace them",
    )


def _counted(count: int) -> str:
    return "1 finished cell" if count == 1 else f"{count} finished cells"

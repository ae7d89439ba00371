"""Unfinished work of a stage: when it is resumed, and which code has worked on it.

A stage writes into ``RUN/.<stage>.partial``. The directory has a note of the wanted result and one of the attempts. The
manifest names the commits of all attempts whose work is in the result, oldest first.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kdedge.errors import InputError, command
from kdedge.files import disk_errors, read_json, write_json
from kdedge.manifest import git_commit, has_mappings, versions
from kdedge.ownership import WANTED, partial_dir, remove_marked
from kdedge.pipeline.changes import changed_keys, changes
from kdedge.pipeline.exchange import ATTEMPTS, DIVERGED, working_files
from kdedge.progress import log, warn

__all__ = ["Attempt", "note_attempt", "prepare_partial", "read_divergence", "unfinished_config"]


def unfinished_config(run_dir: Path, stage: str) -> dict[str, Any]:
    """Return the configuration of the unfinished work of a stage, empty without a valid note."""
    note = _read_wanted(partial_dir(run_dir, stage))
    return dict(note["config"]) if note else {}


def read_divergence(run_dir: Path, stage: str) -> tuple[dict[str, Any], str] | None:
    """Return the wanted result of a training that diverged, and why (None: its last attempt did not diverge)."""
    partial = partial_dir(run_dir, stage)
    try:
        reason = read_json(partial / DIVERGED)
    except (OSError, ValueError):
        return None
    wanted = _read_wanted(partial)
    return (wanted, str(reason)) if wanted else None


def prepare_partial(partial: Path, wanted: Mapping[str, Any], *, force: bool) -> None:
    """Keep the work of an interrupted run of the same stage, or start with an empty directory."""
    note = partial / WANTED
    if partial.exists():
        unfinished = _read_wanted(partial)
        if unfinished == wanted and not force:
            return
        if unfinished is None and working_files(partial):
            warn(f"{note} is missing or damaged: the stage starts over without the unfinished work")
        elif unfinished is not None and not force:
            changed = changes(unfinished, wanted)
            of_host = (key.startswith("config runtime.") and key != "config runtime.seed" for key in changed)
            if changed and all(of_host):
                names = ", ".join(key.removeprefix("config runtime.") for key in changed)
                stage = partial.name[1:].removesuffix(".partial")
                raise InputError(
                    f"{partial} has unfinished work made with another {names}; continuing would change its bits",
                    "run with the same --threads, --precision, --device and processes on the same kind of CPU, "
                    "or start the stage over, with its other options: "
                    f"`{command(stage, '--out', partial.parent, '--force')}`",
                )
            log(f"starting over: changed since the interrupted run: {', '.join(changed[:4])}")
        remove_marked(partial, WANTED)
    with disk_errors(partial):
        partial.mkdir(parents=True)
    write_json(note, wanted)


def _read_wanted(partial: Path) -> dict[str, Any] | None:
    """Read the note of the wanted result (None: missing or damaged)."""
    try:
        wanted = read_json(partial / WANTED)
    except (OSError, ValueError):
        return None
    return {"version": 1, **wanted} if has_mappings(wanted, ("config", "inputs")) else None


class Attempt(NamedTuple):
    """Code of an attempt at a stage, and the time of the working files that it found (0: none)."""

    commit: str | None
    versions: dict[str, str | None]
    found_ns: int


def note_attempt(partial: Path) -> list[Attempt]:
    """Return the attempts whose work is in the working files, oldest first, and this one.

    Attempts that left no working files, or only those that they found, are not among them. Warns of work by other
    package versions.
    """
    note = partial / ATTEMPTS
    working = working_files(partial)
    found_ns = max((path.stat().st_mtime_ns for path in working), default=0)
    attempts = _read_attempts(note) if working and note.exists() else []
    attempts = [*attempts[:-1], *(attempt for attempt in attempts[-1:] if attempt.found_ns != found_ns)]
    attempts.append(Attempt(git_commit(), versions(), found_ns))
    for before, now in pairwise(attempt.versions for attempt in attempts[-2:]):
        for name in changed_keys(before, now):
            warn(
                f"work begun with {name} {before.get(name)} continues with {now.get(name)}: "
                "the result may differ from an uninterrupted run"
            )
    write_json(note, attempts)
    return attempts


def _read_attempts(note: Path) -> list[Attempt]:
    """Read the note of the attempts; a damaged one is ignored with a warning."""
    try:
        attempts = [Attempt(*attempt) for attempt in read_json(note)]
        if all(isinstance(one.versions, dict) and isinstance(one.commit, str | None) for one in attempts):
            return attempts
        reason = "it is not a list of attempts"
    except (OSError, ValueError, TypeError) as error:
        reason = str(error)
    warn(f"{note} is damaged and ignored ({reason}): the manifest will not name the commits of earlier attempts")
    return []

"""Puts the directory of a complete stage in the place of an earlier one, and finishes interrupted exchanges.

A killed exchange leaves the old result or the new one. `recover` completes it, and `clean_up` removes leftovers of
killed commands. In a stage directory, files whose names begin with a dot are working files (checkpoints).
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kdedge.files import read_json
from kdedge.ownership import (
    MANIFEST,
    SIGNATURE,
    WANTED,
    holds_nothing,
    is_partial,
    is_stage,
    old_dir,
    partial_dir,
    remove_marked,
)

__all__ = ["ATTEMPTS", "DIVERGED", "clean_up", "discard", "recover", "replace_dir", "working_files"]

ATTEMPTS = ".attempts.json"  # in a partial directory: the code that worked on it
DIVERGED = ".diverged.json"  # in a partial directory: why the last attempt diverged


def replace_dir(new: Path, target: Path) -> None:
    """Put ``new`` in the place of ``target``; `recover` finishes the exchange after a crash."""
    if not holds_nothing(target):
        target.rename(old_dir(target.parent, target.name))
    elif target.exists():
        target.rmdir()
    new.rename(target)
    recover(target)


def clean_up(run_dir: Path, stages: Iterable[str]) -> None:
    """Remove leftovers of killed commands in a locked run directory, except work that can be resumed."""
    for stage in stages:
        recover(run_dir / stage)
        partial = partial_dir(run_dir, stage)
        if is_partial(partial) and not working_files(partial):
            with suppress(OSError):
                remove_marked(partial, WANTED)


def recover(target: Path) -> None:
    """Finish or undo an interrupted exchange of directories."""
    old = old_dir(target.parent, target.name)
    if is_stage(old, target.name) and holds_nothing(target):
        if target.exists():
            target.rmdir()
        old.rename(target)
    if (target / WANTED).exists() and is_stage(target, target.name):
        # Not every file with a dot: editors, git and file managers also write such files.
        for path in [*working_files(target), target / ATTEMPTS, target / WANTED]:
            path.unlink(missing_ok=True)
    if is_stage(old, target.name) and is_stage(target, target.name):
        with suppress(OSError):  # the result is complete; the next command tries again
            discard(old, target)


def discard(old: Path, new: Path) -> None:
    """Delete a result of a stage, except files of others, which move to another result of it."""
    if not old.is_symlink():
        known = {MANIFEST, SIGNATURE, *read_json(old / MANIFEST)["outputs"]}
        for path in sorted(path for path in old.rglob("*") if not path.is_dir() or path.is_symlink()):
            name = path.relative_to(old)
            if name.as_posix() not in known:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(_free_name(new / name))
    remove_marked(old, MANIFEST)


def _free_name(path: Path) -> Path:
    """Return this path, or a similar one that does not exist."""
    while path.exists() or path.is_symlink():
        path = path.with_name(f"{path.name}.old")
    return path


def working_files(directory: Path) -> list[Path]:
    """Return the files from which a stage resumes."""
    return [path for path in directory.glob(".*") if path.is_file() and not path.name.startswith((WANTED, ATTEMPTS))]

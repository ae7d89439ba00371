"""What in a directory is kdedge's: nothing else is ever replaced or deleted.

A folder of a stage is kdedge's if it is empty or its manifest says so; a folder of unfinished work if it is empty or
holds the note that the work began with. Both marks are deleted last, so that a killed deletion can be finished later.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.files import read_json

__all__ = [
    "MANIFEST",
    "WANTED",
    "check_owned",
    "holds_nothing",
    "is_partial",
    "is_stage",
    "not_ours",
    "old_dir",
    "partial_dir",
    "remove_marked",
]

MANIFEST = "manifest.json"
# In a folder of unfinished work: what the work is for.
WANTED = ".wanted.json"


def partial_dir(run_dir: Path, stage: str) -> Path:
    """Return where a stage works until it is complete."""
    return run_dir / f".{stage}.partial"


def old_dir(run_dir: Path, stage: str) -> Path:
    """Return where the earlier result of a stage waits while the new one takes its place."""
    return run_dir / f".{stage}.old"


def check_owned(run_dir: Path, stages: Iterable[str]) -> None:
    """Refuse a run directory in which a folder of one of these stages is not kdedge's.

    Raises:
        InputError: There is such a folder, or a file in its place.
    """
    for stage in stages:
        for path in (run_dir / stage, old_dir(run_dir, stage)):
            if not holds_nothing(path) and not is_stage(path, stage):
                raise not_ours(path, f"it has no {MANIFEST} of the stage {stage}")
        partial = partial_dir(run_dir, stage)
        if not holds_nothing(partial) and not is_partial(partial):
            raise not_ours(partial, f"it has no {WANTED}")


def not_ours(path: Path, reason: str, flag: str = "--out") -> InputError:
    """Return the error for a file or folder that kdedge would have to replace; ``flag`` chooses another place."""
    return InputError(
        f"{path} was not written by kdedge and is not replaced: {reason}",
        f"give another {flag}, or move it to another place",
    )


def holds_nothing(path: Path) -> bool:
    """Return whether there is nothing at ``path`` that could be lost: no entry, or an empty folder."""
    if path.is_symlink():
        return False
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def is_stage(path: Path, stage: str) -> bool:
    """Return whether ``path`` is a folder, or a link to one, in which kdedge finished this stage."""
    try:
        manifest: Any = read_json(path / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("stage") == stage and isinstance(manifest.get("outputs"), dict)


def is_partial(path: Path) -> bool:
    """Return whether ``path`` is a folder of unfinished work; a kill may have left the note itself unfinished."""
    return path.is_dir() and not path.is_symlink() and any(WANTED in entry.name for entry in path.iterdir())


def remove_marked(path: Path, mark: str) -> None:
    """Delete a folder of kdedge's, or a link to one, the file that marks it as such last."""
    if path.is_symlink():
        path.unlink()
        return
    if not path.exists():
        return
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != mark:
            entry.unlink()
    (path / mark).unlink(missing_ok=True)
    path.rmdir()

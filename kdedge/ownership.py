"""Folders that kdedge may replace or delete; it touches no other.

A folder of a stage is kdedge's if it is empty or has a manifest of that stage. A folder of unfinished work is kdedge's
if it is empty or has the file `WANTED`. Both files are deleted last, so that an interrupted deletion can resume.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.files import read_json

__all__ = [
    "MANIFEST",
    "SIGNATURE",
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
SIGNATURE = f"{MANIFEST}.sig"  # of a bundle, if it is signed
# In a folder of unfinished work: the fingerprint of the work.
WANTED = ".wanted.json"


def partial_dir(run_dir: Path, stage: str) -> Path:
    """Return the folder of a stage's unfinished work."""
    return run_dir / f".{stage}.partial"


def old_dir(run_dir: Path, stage: str) -> Path:
    """Return the folder of a stage's earlier result during its replacement."""
    return run_dir / f".{stage}.old"


def check_owned(run_dir: Path, stages: Iterable[str]) -> None:
    """Check that the folders of these stages in a run directory are kdedge's or absent.

    Raises:
        InputError: A folder is not kdedge's, or a file is in its place.
    """
    for stage in stages:
        for path in (run_dir / stage, old_dir(run_dir, stage)):
            if not holds_nothing(path) and not is_stage(path, stage):
                raise not_ours(path, f"it has no {MANIFEST} of the stage {stage}")
        partial = partial_dir(run_dir, stage)
        if not holds_nothing(partial) and not is_partial(partial):
            raise not_ours(partial, f"it has no {WANTED}")


def not_ours(path: Path, reason: str, flag: str = "--out") -> InputError:
    """Return the error for a file or folder that is not kdedge's; ``flag`` is the option for another place."""
    return InputError(
        f"{path} was not written by kdedge and is not replaced: {reason}",
        f"give another {flag}, or move it to another place",
    )


def holds_nothing(path: Path) -> bool:
    """Return whether ``path`` does not exist or is an empty folder."""
    if path.is_symlink():
        return False
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def is_stage(path: Path, stage: str) -> bool:
    """Return whether ``path`` is a folder, or a link to one, with a finished result of this stage."""
    try:
        manifest: Any = read_json(path / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("stage") == stage and isinstance(manifest.get("outputs"), dict)


def is_partial(path: Path) -> bool:
    """Return whether ``path`` is a folder of unfinished work; after a kill `WANTED` may be unfinished itself."""
    return path.is_dir() and not path.is_symlink() and any(WANTED in entry.name for entry in path.iterdir())


def remove_marked(path: Path, mark: str) -> None:
    """Delete a folder of kdedge's, or a link to one; the file ``mark`` last."""
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

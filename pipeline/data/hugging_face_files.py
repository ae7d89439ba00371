"""The files of a data set of Hugging Face, local or on the hub."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdedge.errors import InputError, StageError
from kdedge.pipeline.data.class_folders import PARTS, first_five, log_once, part_in
from kdedge.progress import log

__all__ = ["EXPECTED", "fetch", "files_of_parts", "reading"]

EXPECTED = (
    "expected a folder of save_to_disk, Parquet files, or OWNER/NAME of the hub, with a column of images, a column of "
    "labels and optionally a column group"
)
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+|[\w-]+)(?:/([\w./-]+))?")
_CONVERTED = "refs/convert/parquet"  # where the hub keeps a Parquet copy of data sets in other formats


def files_of_parts(root: Path) -> dict[str, list[Path]]:
    """Return the files of each part of a local data set.

    Raises:
        InputError: A part is in several folders, or the description of the data set is damaged.
    """
    if root.is_file():
        return {"train": [root]}
    if (root / "dataset_dict.json").is_file():
        splits = _value(root / "dataset_dict.json", "splits")
        named = {name: PARTS[name.casefold()] for name in splits if name.casefold() in PARTS}
        if len({*named.values()}) < len(named):
            raise InputError(f"{root} has the splits {', '.join(named)}, of which two are the same part", EXPECTED)
        _log_ignored(root, [name for name in splits if name not in named])
        return {part: _saved(root / name) for name, part in named.items()}
    if (root / "state.json").is_file():
        return {"train": _saved(root)}
    files: dict[str, list[Path]] = {}
    found = sorted(root.rglob("*.parquet"))
    for file in found:
        if part := part_in(file.relative_to(root).as_posix()):
            files.setdefault(part, []).append(file)
    for part, listed in files.items():
        if len(folders := sorted({file.parent for file in listed})) > 1:
            names = ", ".join(folder.relative_to(root).as_posix() for folder in folders)
            raise InputError(f"{root} has {part} images in several folders: {names}", "give the path of one of them")
    if not files:
        return {"train": found} if found else {}
    used = {file for listed in files.values() for file in listed}
    _log_ignored(root, [file.relative_to(root).as_posix() for file in found if file not in used])
    return files


def _log_ignored(root: Path, names: list[str]) -> None:
    if names:
        log_once(f"{root}: ignoring {first_five(names)}: neither train, val nor test")


def _saved(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set of ``save_to_disk``."""
    return [folder / entry["filename"] for entry in _value(folder / "state.json", "_data_files")]


def _value(file: Path, key: str) -> Any:
    """Return the value of a key in a JSON file."""
    with reading(file):
        return json.loads(file.read_text(encoding="utf-8"))[key]


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise what goes wrong in reading a file as an InputError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError) as error:
        raise InputError(f"cannot read {file}: {' '.join(str(error).split())}", EXPECTED) from error


def fetch(name: str) -> Path:
    """Return the folder of a data set of the hub, downloaded or from its cache.

    Raises:
        InputError: The name is not valid, or the data set has no Parquet files.
        StageError: The hub is unavailable or has no such data set.
    """
    known = _HUB_NAME.fullmatch(name)
    if not known:
        raise InputError(f"the data set {name} does not exist", EXPECTED)
    import huggingface_hub as hub

    repository, inner = known[1], known[2] or ""
    pattern = f"{inner}/*.parquet" if inner else "*.parquet"
    errors: list[Exception] = []
    for revision in ("main", _CONVERTED):
        log(f"fetching {repository} from the Hugging Face hub ({revision})")
        try:
            folder = hub.snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=pattern)
            if next(Path(folder, inner).rglob("*.parquet"), None):
                return Path(folder, inner)
        except Exception as error:  # the errors depend on the version's HTTP library
            errors.append(error)
    if len(errors) == 2:
        reason = (str(errors[0]).splitlines() or [type(errors[0]).__name__])[0]
        raise StageError(
            f"{name} is not a path here and is not available on the Hugging Face hub: {reason}",
            f"check the name and the network; on a machine with one, `hf download --repo-type dataset {repository} "
            "--include '*.parquet'` prints the path of a folder: copy it here, and give --data hf:FOLDER",
        ) from errors[0]
    raise InputError(f"{name} has no Parquet files on the Hugging Face hub", EXPECTED)

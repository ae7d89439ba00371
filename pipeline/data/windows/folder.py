"""Class folders of recordings: ``PATH/CLASS/RECORDING.csv``, or the same in ``PATH/train`` and ``PATH/test``.

Recordings in a folder inside the class folder, ``CLASS/GROUP/RECORDING.csv``, are of that group with ``--groups
folder``. With another ``--groups``, a column of this name has the group of the recording.
"""

from pathlib import Path

from kdedge.errors import InputError
from kdedge.pipeline.data.class_folders import PARTS, class_name, first_five, folders_in
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.windows.series import Series, Source, same_channels, same_rate
from kdedge.progress import track, warn_once
from kdedge.recordings import Recording, Table, csv_files, read_csv, recording_of

__all__ = ["open_recordings"]

LAYOUT = "expected PATH/CLASS/RECORDING.csv, or PATH/train/CLASS/RECORDING.csv and PATH/test/CLASS/RECORDING.csv"
_BY_FOLDER = "folder"


def open_recordings(config: DataConfig, root: Path) -> Source:
    """Read all recordings of class folders.

    Raises:
        InputError: A class has none, or a recording cannot be read or differs from the others.
    """
    parts = _parts(root)
    found = {folder: (part, csv_files(folder)) for part, path in parts.items() for folder in folders_in(path)}
    files = [(part, folder, file) for folder, (part, listed) in found.items() for file in listed]
    if not files:
        loose = csv_files(root)
        what = f"no class folders, but recordings such as {loose[0].name}" if loose else "no recordings"
        raise InputError(f"{root} has {what}", f"{LAYOUT}, or one file with the columns id and label")
    if empty := [folder for folder, (_, listed) in found.items() if not listed]:
        raise InputError(
            f"the class folder {empty[0]} has no recording (.csv)", f"add recordings or remove that folder; {LAYOUT}"
        )
    for path in parts.values():
        if outside := [file.name for file in csv_files(path) if file.parent == path]:
            warn_once(f"{path}: files outside any class folder are not used: {first_five(outside)}")
    series, recordings = [], []
    with track("reading recordings", len(files)) as progress:
        for part, folder, file in files:
            table = read_csv(file)
            group = _group(table, file, config.groups, folder)
            by_column = (config.groups,) if config.groups not in ("", _BY_FOLDER) else ()
            recording = recording_of(table, by_column)
            recordings.append(recording)
            name = file.relative_to(root).as_posix()
            series.append(Series(name, recording.values, class_name(folder.name), group or name, part))
            progress.advance()
    channels = same_channels([(str(one.path), _channels(one)) for one in recordings])
    return Source(root, series, channels, same_rate([(str(one.path), one.rate_hz) for one in recordings], config.rate))


def _parts(root: Path) -> dict[str, Path]:
    """Return the folders of the parts, by ``train``, ``val`` and ``test``, or ``root`` by an empty name.

    Raises:
        InputError: A folder next to the parts may be a class, two are one part, none is for training, or one has no
            class folders.
    """
    folders = folders_in(root)
    named = [path for path in folders if path.name.casefold() in PARTS]
    if not named:
        return {"": root}
    if others := [path.name for path in folders if path not in named and csv_files(path)]:
        what = f"recordings in {others[0]} next to {named[0].name}"
        raise InputError(f"{root} has {what}: it is not clear whether {others[0]} is a class", LAYOUT)
    parts = {PARTS[path.name.casefold()]: path for path in named}
    if "train" not in parts or len(parts) < len(named):
        raise InputError(f"{root} has {', '.join(path.name for path in named)}: one training folder is needed", LAYOUT)
    if empty := [path for path in parts.values() if not folders_in(path)]:
        loose = ", but recordings" if csv_files(empty[0]) else ""
        raise InputError(f"{empty[0]} has no class folders{loose}", LAYOUT)
    return parts


def _channels(recording: Recording) -> tuple[str, ...]:
    return recording.channels or tuple(f"channel {index + 1}" for index in range(recording.values.shape[1]))


def _group(table: Table, file: Path, groups: str, folder: Path) -> str:
    """Return the group of a recording; empty: it has its own."""
    if not groups:
        return ""
    if groups == _BY_FOLDER:
        if file.parent.parent != folder:
            raise InputError(f"{file} is not in a folder of a group", "expected CLASS/GROUP/RECORDING.csv")
        return file.parent.name
    if groups not in table.names:
        raise InputError(
            f"{file} has no column {groups}", f"--groups is a column, or {_BY_FOLDER} for CLASS/GROUP/RECORDING.csv"
        )
    found = {*table.columns[table.names.index(groups)]}
    if len(found) > 1:
        raise InputError(f"{file} has several values of {groups}: {', '.join(sorted(found)[:5])}", "expected one")
    return found.pop()

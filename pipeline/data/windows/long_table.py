"""One long table of recordings: a row per instant, with the columns ``id``, ``label`` and one per channel.

A column of the time is recognised by its name. ``split`` (``train``, ``val`` or ``test``) is optional. ``--groups``
names the column of the groups; without it every ``id`` is a group.
"""

from pathlib import Path

from kdedge.errors import InputError
from kdedge.pipeline.data.class_folders import PARTS, class_name
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.table import read_parquet
from kdedge.pipeline.data.windows.series import Series, Source, same_channels, same_rate
from kdedge.recordings import Table, check_names, read_csv, recording_of

__all__ = ["open_long_table"]

_EXPECTED = (
    "expected the columns id (of the recording), label and one per channel, and optionally a time, split and the one "
    "of --groups"
)


def open_long_table(config: DataConfig, file: Path) -> Source:
    """Read all recordings of a long CSV or Parquet table.

    Raises:
        InputError: The table cannot be read, or a row is not as expected.
    """
    table = _read(file)
    texts = ("id", "label", *(["split"] if "split" in table.names else []), *([config.groups] if config.groups else []))
    if missing := [name for name in texts if name not in table.names]:
        raise InputError(f"{file} has no column {missing[0]}; it has {', '.join(table.names)}", _EXPECTED)
    facts = {name: table.columns[table.names.index(name)] for name in texts}
    splits = facts.get("split", [])
    if (empty := splits.index("") if "" in splits else None) is not None and any(splits):
        raise table.problem(empty, "the split is empty, but other rows have one: expected all or none")
    ends = [row for row in range(1, len(table.lines)) if facts["id"][row] != facts["id"][row - 1]]
    series, rates, found, seen = [], [], [], set[str]()
    for start, stop in zip([0, *ends], [*ends, len(table.lines)], strict=True):
        identity = facts["id"][start]
        if identity in seen:
            raise table.problem(start, f"the rows of the id {identity} are not together")
        seen.add(identity)
        for name, cells in facts.items():
            if changed := next((row for row in range(start, stop) if cells[row] != cells[start]), None):
                raise table.problem(changed, f"the {name} changes inside the id {identity}: give each part its own id")
        columns = tuple(column[start:stop] for column in table.columns)
        part = Table(file, table.names, columns, table.lines[start:stop])
        recording = recording_of(part, texts)
        place = f"the id {identity} of {file}"
        found.append((place, recording.channels))
        split = facts["split"][start].casefold() if "split" in facts else ""
        if split and split not in PARTS:
            raise table.problem(start, f"the split is {split!r}, expected train, val or test")
        group = facts[config.groups][start] if config.groups else identity
        label = class_name(facts["label"][start])
        series.append(Series(identity, recording.values, label, group or identity, PARTS.get(split, "")))
        rates.append((place, recording.rate_hz))
    return Source(file, series, same_channels(found), same_rate(rates, config.rate))


def _read(file: Path) -> Table:
    if file.suffix.lower() != ".parquet":
        return read_csv(file)
    names, rows = read_parquet(file)
    check_names(file, names)
    cells = [row for _, row in rows]
    if not cells:
        raise InputError(f"{file} has no rows", _EXPECTED)
    columns = tuple([cell.strip() for cell in column] for column in zip(*cells, strict=True))
    return Table(file, tuple(names), columns, list(range(1, len(cells) + 1)))

"""The user's images in a data set of Hugging Face: ``--data hf:PATH`` or ``--data hf:OWNER/NAME``.

PATH is a folder of ``save_to_disk`` (Arrow files), a Parquet file or a folder of Parquet files. OWNER/NAME is a data
set of the hub, whose Parquet files are downloaded into its cache (``HF_HOME``). The columns are found by their types.
Needs the extra ``hf``, and not the package ``datasets``; no script of a data set is executed.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kdedge.errors import InputError
from kdedge.files import file_stamp
from kdedge.pipeline.data.class_folders import class_name, is_label, log_once
from kdedge.pipeline.data.hugging_face_files import EXPECTED, fetch, files_of_parts, reading
from kdedge.pipeline.data.items import Item
from kdedge.pipeline.data.parts import Listed, Parts, check_groups
from kdedge.progress import warn_once
from kdedge.stored_image import StoredImage

__all__ = ["list_hugging_face"]

_LABELS = ("label", "labels", "class", "target")
_loading = threading.Lock()  # several threads ask for the same block


@dataclass(frozen=True)
class _Block:
    """Rows that are read at a time: a row group of a Parquet file, or an Arrow file (-1)."""

    file: Path
    group: int
    stamp: tuple[int, int]

    def cells(self, column: str) -> Any:
        """Return a column.

        Raises:
            InputError: The file has changed or is damaged.
        """
        with _loading:
            return _cells(self, column)


@lru_cache(maxsize=4)
def _cells(block: _Block, column: str) -> Any:
    with reading(block.file):
        changed = file_stamp(block.file) != block.stamp
    if changed:
        raise InputError(f"{block.file} has changed", "leave the file as it is while kdedge runs")
    with reading(block.file):
        if block.group < 0:
            return _arrow(block.file)[column]
        from pyarrow import parquet

        return parquet.ParquetFile(block.file).read_row_group(block.group, columns=[column])[column]


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredItem(Item):
    """One image in a column."""

    block: _Block
    column: str
    row: int

    @property
    def source(self) -> StoredImage:
        """The bytes of the image."""
        return StoredImage(self.name, lambda: _bytes(self.block, self.column, self.row))

    def digest(self) -> bytes:
        """Return the SHA-256 of the bytes."""
        return _digest(self.block, self.column, self.row)


def _bytes(block: _Block, column: str, row: int) -> bytes:
    cell = block.cells(column)[row].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not data:
        raise ValueError("the data set has its path and not its bytes; embed_external_files stores them")
    return bytes(data)


@cache
def _digest(block: _Block, column: str, row: int) -> bytes:
    return hashlib.sha256(_bytes(block, column, row)).digest()


def list_hugging_face(path: Path) -> Listed:
    """List the images of a data set without opening one.

    Args:
        path: A local file or folder, else the name of a data set on the hub.

    Raises:
        InputError: The data set is damaged or not as expected.
        StageError: It is neither local nor available on the hub.
    """
    files = files_of_parts(path if path.exists() else fetch(path.as_posix()))
    if not files.keys() & {"train", "test"}:
        raise InputError(f"{path} has the splits {', '.join(files) or '(none)'}", EXPECTED)
    if "train" not in files:
        files.pop("val", None)
    rows = {part: _rows(path, part, listed) for part, listed in files.items()}
    for part in ("val", "test"):  # the labels of a test split may be secret
        if "train" in rows and part in rows and any(not row.label for row in rows[part]):
            warn_once(f"{path}: the split {part} has images without labels and is not used")
            del rows[part]
    names = _class_names(rows["train" if "train" in rows else "test"])
    parts: Parts = {part: [_item(path, row, names) for row in listed] for part, listed in rows.items()}
    check_groups(path, parts)
    return Listed("hf", path, names, parts, len(files) > 1 or "test" in files, EXPECTED)


@dataclass(frozen=True, slots=True)
class _Row:
    """One image; ``label`` and ``group`` may be empty, ``order`` sorts the classes."""

    block: _Block
    column: str
    row: int
    name: str
    label: str
    order: int
    group: str


def _rows(root: Path, part: str, files: list[Path]) -> list[_Row]:
    rows: list[_Row] = []
    for file in files:
        with reading(file):
            table = _table(file)
            image, label, names = _columns(file, table.schema)
            labels = table.values(label)
            groups = table.values("group") if "group" in table.schema.names else [None] * len(labels)
            stamp = file_stamp(file)
        blocks = [(_Block(file, group, stamp), count) for group, count in table.counts]
        places = ((block, row) for block, count in blocks for row in range(count))
        for (block, row), value, member in zip(places, labels, groups, strict=True):
            place = f"{part}[{len(rows)}]"
            text, order = _label(value, names)
            if text and not is_label(text):
                raise InputError(f"the label {text!r} of {place} of {root} has characters that a label cannot have")
            rows.append(_Row(block, image, row, place, text, order, "" if member is None else str(member)))
    return rows


def _label(value: Any, names: list[str]) -> tuple[str, int]:
    """Return the name of a class, empty if there is none, and its place among the classes."""
    if names:
        known = value is not None and 0 <= value < len(names)
        return (class_name(names[value]), value) if known else ("", -1)
    return ("", -1) if value is None else (class_name(str(value)), value if isinstance(value, int) else 0)


def _class_names(rows: list[_Row]) -> tuple[str, ...]:
    """Return the classes in the order of the feature, else of their numbers, else of their names."""
    return tuple(name for _, name in sorted({(row.order, row.label) for row in rows if row.label}))


def _item(root: Path, row: _Row, names: tuple[str, ...]) -> _StoredItem:
    if row.label not in names:
        found = f"the class {row.label}, which train has not" if row.label else "no label"
        raise InputError(f"{row.name} of {root} has {found}", EXPECTED)
    return _StoredItem(
        row.block.file, names.index(row.label), row.name, row.name, row.group,
        block=row.block, column=row.column, row=row.row,
    )  # fmt: skip


def _columns(file: Path, schema: Any) -> tuple[str, str, list[str]]:
    """Return the columns of images and labels, and the names of the classes; none if the labels are the names."""
    import pyarrow as pa

    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = info.get("info", {}).get("features") or {}
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    images = [field.name for field in schema if kinds.get(field.name) == "Image" or _has_bytes(field.type)]
    classes = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    plain = [field.name for field in schema if field.name in _LABELS]
    labels = sorted(classes or plain, key=lambda name: _LABELS.index(name) if name in _LABELS else len(_LABELS))
    if not images or not labels:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(f"{file} has the columns {listed}", EXPECTED)
    for kind, found in (("images", images), ("labels", labels)):
        if len(found) > 1:
            log_once(f"{file}: {kind} are read from the column {found[0]}, not from {', '.join(found[1:])}")
    field = schema.field(labels[0])
    if not (pa.types.is_integer(field.type) or pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
        raise InputError(f"the labels {field.name} of {file} are {field.type}", "expected integers or strings")
    return images[0], labels[0], list(features.get(labels[0], {}).get("names") or [])


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


class _Table(NamedTuple):
    """Schema of a file, number and length of each block, and a function that reads a column."""

    schema: Any
    counts: list[tuple[int, int]]
    values: Callable[[str], list[Any]]


def _table(file: Path) -> _Table:
    if file.suffix == ".arrow":
        table = _arrow(file)
        return _Table(table.schema, [(-1, table.num_rows)], lambda column: list(table[column].to_pylist()))
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    counts = [(group, opened.metadata.row_group(group).num_rows) for group in range(opened.num_row_groups)]
    return _Table(opened.schema_arrow, counts, lambda column: list(opened.read([column])[column].to_pylist()))


def _arrow(file: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()

"""Predictions of a model from any runtime, read from a file and paired with the predictions of another model.

A ``.csv`` file has a heading and a row per image: ``label`` and either ``prediction`` or one column per class,
``logit_NAME``. The columns ``image`` and ``group`` (a patient, a recording; may be empty) are optional. Labels,
predictions and NAMEs are class names or numbers.

A ``.npz`` file has ``labels`` [N] and either ``predictions`` [N] or ``logits`` [N, C]. The keys ``images`` (names of
the images, [N]), ``groups`` ([N]) and ``classes`` (names of the classes, [C]; default: 0 to C - 1) are optional.
"""

import csv
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import InputError

__all__ = ["SUFFIXES", "Pairs", "Predictions", "pair", "read_predictions"]

SUFFIXES = (".csv", ".npz")

_LOGIT = "logit_"
_COLUMNS = "expected the columns label and prediction, or label, logit_0, logit_1, …; optional: image, group"
_ARRAYS = ("labels", "predictions", "logits", "images", "groups", "classes")
_KEYS = (
    "save it with numpy.savez(FILE, labels=..., logits=...) or predictions=...; images=... and groups=... are optional"
)


@dataclass(frozen=True)
class Predictions:
    """The predictions of one model.

    Attributes:
        path: The file.
        labels: Class of each image.
        answers: Predicted class of each image.
        places: Place of each image in the file, for messages.
        classes: Names of the classes, if the file has logits; else empty.
        images: Name of each image, or None if the file has none.
        groups: Group of each image, or None if the file has none.
    """

    path: Path
    labels: list[str]
    answers: list[str]
    places: list[str]
    classes: tuple[str, ...]
    images: list[str] | None
    groups: list[str] | None = None


@dataclass(frozen=True)
class Pairs:
    """The predictions of two models for the same images.

    Attributes:
        class_names: Names of the classes.
        labels: ``[N] int64``, class of each image.
        fp32: ``[N] int64``, the answer of the FP32 model.
        int8: ``[N] int64``, the answer of the INT8 model.
        groups: ``[N] str``, the group of each image; None: no groups.
    """

    class_names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    fp32: npt.NDArray[np.int64]
    int8: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_] | None = None


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions.

    Raises:
        InputError: The file is missing or not as this module describes; the message names the line or the key.
    """
    if not path.is_file():
        raise InputError(f"no file of predictions at {path}", "check the path")
    found = _read_csv(path) if path.suffix.lower() == ".csv" else _read_npz(path)
    if not found.labels:
        raise InputError(f"{path} has no predictions", "add one row per image")
    if found.images is not None:
        name, count = Counter(found.images).most_common(1)[0]
        if count > 1:
            first, second = [place for place, image in zip(found.places, found.images, strict=True) if image == name][
                :2
            ]
            raise InputError(f"{path}, {second}: the image {name!r} is already in {first}", "keep one of them")
    if found.classes:
        known = set(found.classes)
        for place, label in zip(found.places, found.labels, strict=True):
            if label not in known:
                raise InputError(
                    f"{path}, {place}: the label {label!r} has no logit; the logits are of "
                    f"{', '.join(found.classes[:8])}{' …' if len(found.classes) > 8 else ''}",
                    "labels and logits need the same class names or numbers",
                )
    elif len({*found.labels}) > 1 and {*found.labels}.isdisjoint(found.answers):
        raise InputError(
            f"{path}: no prediction is one of the labels; the first label is {found.labels[0]!r}, the first prediction "
            f"{found.answers[0]!r}",
            "labels and predictions need the same class names or numbers",
        )
    return found


def pair(fp32: Predictions, int8: Predictions) -> Pairs:
    """Pair the predictions of two models by the names of the images, or by order if a file has no names.

    Raises:
        InputError: The files have different images, or different labels or groups for an image.
    """
    order = _same_images(fp32, int8)
    for what, ours, theirs in (("label", fp32.labels, int8.labels), ("group", fp32.groups, int8.groups)):
        for index, other in enumerate(order if ours and theirs else ()):
            if ours and theirs and ours[index] != theirs[other]:
                raise InputError(
                    f"{fp32.path}, {fp32.places[index]} has the {what} {ours[index]!r}; "
                    f"{int8.path}, {int8.places[other]} has {theirs[other]!r} for the same image",
                    "both files need the same images; with a column image they may have any order",
                )
    names = {*fp32.labels, *fp32.answers, *int8.answers, *fp32.classes, *int8.classes}
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    class_names = tuple(sorted(names, key=int) if numbers else sorted(names))
    index_of = {name: index for index, name in enumerate(class_names)}

    def indices(answers: Iterable[str]) -> npt.NDArray[np.int64]:
        return np.array([index_of[name] for name in answers], np.int64)

    answers = indices(fp32.answers), indices(int8.answers[other] for other in order)
    groups = fp32.groups or (int8.groups and [int8.groups[other] for other in order])
    return Pairs(class_names, indices(fp32.labels), *answers, np.array(groups, np.str_) if groups else None)


def _same_images(fp32: Predictions, int8: Predictions) -> Sequence[int]:
    """Return for each image of ``fp32`` its index in ``int8``."""
    hint = "both files need the same images"
    if fp32.images is None or int8.images is None:
        if len(fp32.labels) != len(int8.labels):
            raise InputError(f"{fp32.path} has {len(fp32.labels):,} images, {int8.path} {len(int8.labels):,}", hint)
        return range(len(fp32.labels))
    index_of = {name: index for index, name in enumerate(int8.images)}
    for one, other in ((fp32, int8), (int8, fp32)):
        missing = sorted({*(one.images or ())} - {*(other.images or ())})
        if missing:
            place = one.places[(one.images or []).index(missing[0])]
            raise InputError(
                f"{one.path}, {place}: the image {missing[0]!r} is not in {other.path} "
                f"({len(missing):,} of {len(one.labels):,} are not)",
                hint,
            )
    return [index_of[name] for name in fp32.images]


def _read_csv(path: Path) -> Predictions:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse_rows(path, csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}", _COLUMNS) from error


def _parse_rows(path: Path, reader: Any) -> Predictions:
    columns = [name.strip() for name in next(reader, [])]
    logits = [index for index, name in enumerate(columns) if name.startswith(_LOGIT)]
    classes = tuple(columns[index].removeprefix(_LOGIT) for index in logits)
    once = len(columns) == len(set(columns))
    if "label" not in columns or ("prediction" in columns) == bool(logits) or not once:
        shown = ", ".join(columns[:8]) + (" …" if len(columns) > 8 else "")
        raise InputError(f"{path}, line 1: the columns are {shown or 'missing'}", _COLUMNS)
    label = columns.index("label")
    image, group = (columns.index(name) if name in columns else None for name in ("image", "group"))
    labels: list[str] = []
    answers: list[str] = []
    places: list[str] = []
    images: list[str] = []
    groups: list[str] = []
    for row in reader:
        if not row:  # an empty line
            continue
        place = f"line {reader.line_num}"
        if len(row) != len(columns):
            raise InputError(f"{path}, {place}: {len(row)} values for {len(columns)} columns", _COLUMNS)
        values = {name: row[index].strip() for index, name in enumerate(columns) if index not in logits}
        if empty := [name for name, value in values.items() if name in ("image", "label", "prediction") and not value]:
            raise InputError(f"{path}, {place}: the value of {empty[0]} is empty", _COLUMNS)
        labels.append(row[label].strip())
        answers.append(values["prediction"] if not logits else _best(path, place, row, logits, classes))
        places.append(place)
        if image is not None:
            images.append(row[image].strip())
        if group is not None:
            groups.append(row[group].strip())
    named = images if image is not None else None, groups if group is not None else None
    return Predictions(path, labels, answers, places, classes, *named)


def _best(path: Path, place: str, row: Sequence[str], logits: Sequence[int], classes: Sequence[str]) -> str:
    """Return the class with the largest logit of a row."""
    best, largest = 0, -math.inf
    for number, index in enumerate(logits):
        try:
            value = float(row[index])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(
                f"{path}, {place}: {_LOGIT}{classes[number]} is {row[index]!r}, not a finite number",
                "write logits as decimal numbers",
            )
        if value > largest:
            best, largest = number, value
    return classes[best]


def _read_npz(path: Path) -> Predictions:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array, not several with names")
        with loaded as file:
            arrays = {key: file[key] for key in _ARRAYS if key in file}
            found = ", ".join(file.files)
    except (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not a readable .npz file: {error}", _KEYS) from error
    if "labels" not in arrays or ("predictions" in arrays) == ("logits" in arrays):
        raise InputError(
            f"{path} has the keys {found or 'none'}; expected labels and one of logits and predictions", _KEYS
        )
    count = arrays["labels"].size
    labels = _names(path, "labels", arrays["labels"], count)
    named = [_names(path, key, arrays[key], count) if key in arrays else None for key in ("images", "groups")]
    places = [f"labels[{index}]" for index in range(count)]
    if "predictions" in arrays:
        return Predictions(path, labels, _names(path, "predictions", arrays["predictions"], count), places, (), *named)
    logits = arrays["logits"]
    if logits.ndim != 2 or len(logits) != count or not logits.shape[1] or logits.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: logits is {logits.dtype} {list(logits.shape)}; expected numbers [{count}, C] for {count} labels",
            _KEYS,
        )
    if bad := np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist():
        raise InputError(f"{path}: logits[{bad[0]}] is not finite", "the model returned NaN or infinity")
    width = logits.shape[1]
    classes = _names(path, "classes", arrays.get("classes", np.arange(width)), width)
    if len({*classes}) < width:
        raise InputError(f"{path}: classes has {Counter(classes).most_common(1)[0][0]!r} twice", _KEYS)
    answers = [classes[index] for index in logits.argmax(axis=1)]
    return Predictions(path, labels, answers, places, tuple(classes), *named)


def _names(path: Path, key: str, array: npt.NDArray[Any], count: int) -> list[str]:
    """Return an array of names or whole numbers as texts."""
    if array.shape != (count,) or array.dtype.kind not in "iuU":
        raise InputError(
            f"{path}: {key} is {array.dtype} {list(array.shape)}; expected whole numbers or texts [{count}]", _KEYS
        )
    return [str(value) for value in array.tolist()]

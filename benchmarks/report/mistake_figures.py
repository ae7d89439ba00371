"""The figures of wrong predictions: the confusion matrix, and the most confident mistakes as a grid of images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["grid_size", "matrix_size", "paint_confusions", "paint_mistakes"]

_MOST_CLASSES = 20
_RIGHT, _WRONG = (0x2F, 0x7E, 0xD8), (0xD0, 0x45, 0x3E)
_WIDTH = 7.2
_COLUMNS = 6
_ROW = 1.4  # height of an image and its texts in widths of a column
_STRONG = 0.65  # strength of a cell from which its number is white
_LONGEST_NAME = 14
_OTHERS = ""  # instead of the name of a class that is not shown; a class may be called "others"


def matrix_size(classes: int) -> tuple[float, float]:
    """Return width and height of the confusion matrix in inches."""
    return _WIDTH, 1.5 + 0.3 * min(classes, _MOST_CLASSES)


def paint_confusions(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    wrong: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    word: str = "image",
) -> None:
    """Draw the confusion matrix, of many classes the 20 of the most frequent confusions.

    Args:
        axes: Matplotlib axes.
        rows: ``per_class`` of the report, classes with test inputs.
        wrong: ``confusions`` of the report.
        names: Drawable name of each class.
        word: Word for one input.
    """
    confused = [name for row in wrong for name in (row["label"], row["predicted"])]
    worst = list(dict.fromkeys([*confused, *(row["class"] for row in rows)]))[:_MOST_CLASSES]
    shown = [row for row in rows if row["class"] in worst]
    columns = [row["class"] for row in shown]
    counts = {name: Counter[str]() for name in columns}
    for row in wrong:
        if row["label"] in counts:
            predicted = row["predicted"] if row["predicted"] in columns else _OTHERS
            counts[row["label"]][predicted] += row["count"]
    cut = len(columns) < len(rows) or any(_OTHERS in found for found in counts.values())
    shares = np.zeros((len(shown), len(columns) + cut))
    for y, row in enumerate(shown):
        found = counts[row["class"]]
        shares[y] = [found[name] / row["n"] for name in columns] + [found[_OTHERS] / row["n"]] * cut
        shares[y, y] = 1 - found.total() / row["n"]
    right = np.eye(*shares.shape, dtype=bool)
    # Few mistakes of many are seen too: the strength is the square root of the share.
    strength = np.where(right, shares, np.sqrt(shares))[..., None]
    hues = np.where(right[..., None], _RIGHT, _WRONG) / 255
    back = np.array([int(axes.figure.get_facecolor()[part] * 255) / 255 for part in range(3)])
    axes.imshow(back + (hues - back) * 0.85 * strength, aspect="auto")
    small = 8 if len(columns) <= 12 else 6.5
    for y, x in np.argwhere(shares > 0):
        percent = 100 * shares[y, x]
        text = f"{percent:.0f}" if percent >= 0.5 else "<1"
        color = "white" if strength[y, x, 0] > _STRONG else axes.xaxis.label.get_color()
        axes.text(x, y, text, ha="center", va="center", fontsize=small, color=color)
    turned: dict[str, Any] = {} if len(columns) <= 5 else {"rotation": 45, "ha": "right"}
    labels = [_short(names[name]) for name in columns]
    axes.set_xticks(range(shares.shape[1]), labels + ["(others)"] * cut, fontsize=small, **turned)
    axes.set_yticks(
        range(len(shown)),
        [f"{name} ({row['n']:,})" for name, row in zip(labels, shown, strict=True)],
        fontsize=small,
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel(f"class (test {word}s)")
    which = f"; {len(shown)} of {len(rows)} classes, the most confused" if len(shown) < len(rows) else ""
    axes.set_title(f"% of the {word}s of a class{which}", fontsize=8, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def grid_size(mistakes: int) -> tuple[float, float]:
    """Return width and height of the grid of mistakes in inches."""
    return _WIDTH, 0.1 + _WIDTH / _COLUMNS * _ROW * -(-mistakes // _COLUMNS)


def paint_mistakes(
    axes: Any, rows: Sequence[Mapping[str, Any]], images: npt.NDArray[np.uint8], names: Mapping[str, str]
) -> None:
    """Draw the most confident mistakes with predicted class, probability and class.

    Args:
        axes: Matplotlib axes.
        rows: ``mistakes`` of the report.
        images: Their images, uint8 ``[N, S, S, C]``.
        names: Drawable name of each class.
    """
    for place, (row, image) in enumerate(zip(rows, images, strict=True)):
        left, top = place % _COLUMNS, -_ROW * (place // _COLUMNS)
        axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)), extent=(left + 0.04, left + 0.96, top - 0.92, top))
        answer = f"{_short(names[row['predicted']])}, {100 * row['probability']:.0f} %"
        axes.text(left + 0.5, top - 0.97, answer, ha="center", va="top", fontsize=7, color="#d0453e")
        axes.text(left + 0.5, top - 1.14, f"is {_short(names[row['label']])}", ha="center", va="top", fontsize=7)
    axes.set_xlim(0, _COLUMNS)
    axes.set_ylim(-_ROW * -(-len(rows) // _COLUMNS), 0.02)
    axes.set_aspect("equal")
    axes.axis("off")


def _short(name: str) -> str:
    """Return a name without its middle if it is long: names of many classes often differ only at the end."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:7]}…{name[-6:]}"

"""Shows the summary of a data set as a table in a terminal and as ``data.html``.

The page is one file without links to others. It shows images or windows of every class as the student sees them.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdedge.benchmarks.grouped import FEWEST_GROUPS
from kdedge.dataset import Split
from kdedge.files import disk_errors, write_atomic
from kdedge.images import image_of
from kdedge.ownership import holds_nothing, not_ours
from kdedge.pipeline.data.duplicates import COPIES
from kdedge.pipeline.data.inspection import range_hint, size_hint
from kdedge.pipeline.data.windows.summary import channel_colors, group_counts, window_findings, window_sheet
from kdedge.progress import printable
from kdedge.templates import load_template, picture_url

__all__ = ["check_page", "findings", "print_summary", "write_page"]

PAGE = "data.html"
_TITLE = "kdedge data:"  # in the page, marks it as one of kdedge

_MOST_ROWS = 40
_PER_CLASS, _MOST_SHEETS = 10, 200  # images of a contact sheet, and classes that have one
_UNEQUAL = 10  # ratio of class sizes from which the table has advice
_MOST_SIDE = 96  # pixels of an image on a sheet
_COLUMNS = {
    "training": "train", "validation": "val", "test": "test", "recordings": "recordings", "groups": "groups",
    "left out": "left_out",
}  # fmt: skip


def findings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the findings as lines of text, each with its subject."""
    if "input" in summary:
        sizes, copies = ("class sizes", _balance(summary)), ("exact copies", _copies(summary))
        return [*window_findings(summary), sizes, copies, ("gate", _gate(summary))]
    return [
        ("class sizes", _balance(summary)),
        ("image sizes", _sizes(summary)),
        *([("groups", group_counts(summary["groups"]))] if "groups" in summary else []),
        *([("file modes", _modes(summary))] if "modes" in summary else []),
        ("pixels", _pixels(summary["pixels"])),
        ("exact copies", _copies(summary)),
        ("near copies", _near_copies(summary)),
        *([("left out", _left_out(summary["left_out"]))] if summary["left_out"] else []),
        ("unreadable", f"{len(summary['unreadable']):,} files"),
        ("gate", _gate(summary)),
        ("defaults", _defaults(summary["defaults"])),
    ]


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print a table of the classes, the findings, and the files that cannot be read, by reason."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = summary["per_class"]
    shown = rows if len(rows) <= _MOST_ROWS else sorted(rows, key=lambda row: row["train"])[: _MOST_ROWS // 2]
    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column("class", footer="all" if shown is rows else f"all {len(rows)}")
    columns = _columns(summary)
    for title, key in columns.items():
        total = summary[key]
        table.add_column(
            title, justify="right", footer=f"{sum(total.values()) if isinstance(total, dict) else total:,}"
        )
    for row in shown:
        table.add_row(Text(row["class"]), *(f"{row[key]:,}" for key in columns.values()))
    console = Console(highlight=False, markup=False)
    console.print(table)
    if shown is not rows:
        console.print(
            f"({len(shown)} of {len(rows)} classes, those with the fewest training {_unit(summary)}s; --json has all)"
        )
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for subject, text in findings(summary):
        facts.add_row(subject, Text(printable(text)))
    console.print()
    console.print(facts)
    for kind, one, other in _examples(summary):
        console.print(f"{kind}: {printable(one)} and {printable(other)}", soft_wrap=True)
    unreadable: dict[str, list[str]] = {}
    for item in summary["unreadable"]:
        unreadable.setdefault(printable(item["reason"]), []).append(printable(item["file"]))
    for reason, files in unreadable.items():
        console.print("\n  ".join([f"cannot be read: {reason}", *files]), soft_wrap=True)


def check_page(out_dir: Path) -> None:
    """Refuse to replace a ``data.html`` that kdedge did not write.

    Raises:
        InputError: There is such a file or folder.
    """
    page = out_dir / PAGE
    if not holds_nothing(page) and not (page.is_file() and f"<title>{_TITLE}".encode() in page.read_bytes()[:4096]):
        raise not_ours(page, "it is not a page about a data set")


def write_page(summary: Mapping[str, Any], sample: Split, out_dir: Path) -> Path:
    """Write ``data.html`` and return its path.

    Args:
        summary: From `kdedge.pipeline.data.summary.summarise`.
        sample: Training images or windows for the sheets.
        out_dir: The directory; it is made if it does not exist.

    Raises:
        StageError: The file cannot be written.
    """
    rows = [
        {**row, "sheet": _sheet(sample, label) if label < _MOST_SHEETS else ""}
        for label, row in enumerate(summary["per_class"])
    ]
    page = load_template(Path(__file__).parent / "templates" / f"{PAGE}.j2").render(
        title=_TITLE,
        summary=summary,
        rows=rows,
        columns=_columns(summary),
        unit=_unit(summary),
        colors=channel_colors(sample.spec.channels) if sample.signal else (),
        findings=findings(summary),
        examples=_examples(summary, most=20),
    )
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(out_dir / PAGE, page.encode(errors="replace"))
    return out_dir / PAGE


def _unit(summary: Mapping[str, Any]) -> str:
    return "window" if "input" in summary else "image"


def _columns(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of the classes by title, those that the summary has."""
    return {title: key for title, key in _COLUMNS.items() if key in summary["per_class"][0] and summary[key] != 0}


def _sheet(sample: Split, label: int) -> str:
    """Return images or windows of a class next to each other as the URL of a picture; empty: there are none."""
    images = sample.images[sample.labels == label]
    if sample.signal:
        return picture_url(window_sheet(images, sample.signal).encode(), "svg+xml") if len(images) else ""
    images = images[:_PER_CLASS]
    if not len(images):
        return ""
    sheet = image_of(np.concatenate(list(images), axis=1))
    side = min(_MOST_SIDE, images.shape[1])
    file = io.BytesIO()
    sheet.resize((side * len(images), side), Image.Resampling.BOX).save(file, "WEBP", quality=85)
    return picture_url(file.getvalue(), "webp")


def _balance(summary: Mapping[str, Any]) -> str:
    small, large = summary["smallest_class"], summary["largest_class"]
    units = f"training {_unit(summary)}" + "s" * (small["train"] != 1)
    if small["train"] == large["train"]:
        return f"all classes have {small['train']:,} {units}"
    advice = "; if rare classes matter, try --balance sampler and --metric balanced"
    return (
        f"{small['class']} with {small['train']:,} {units}; the largest, {large['class']}, has "
        f"{large['train']:,} ({summary['imbalance']:g} times as many){advice * (summary['imbalance'] >= _UNEQUAL)}"
    )


def _sizes(summary: Mapping[str, Any]) -> str:
    resized = f"resized to {summary['image_size']} x {summary['image_size']} pixels ({summary['resize']})"
    if not (sizes := summary.get("source_sizes")):
        return resized
    small, median, large = (" x ".join(map(str, sizes[key])) for key in ("smallest", "median", "largest"))
    return f"{small} to {large} pixels, median {median}; {resized}{size_hint(sizes['median'], summary['image_size'])}"


def _modes(summary: Mapping[str, Any]) -> str:
    modes = ", ".join(f"{count:,} {mode}" for mode, count in summary["modes"].items())
    frames = f"; {n:,} with several frames, of which the first is used" if (n := summary["several_frames"]) else ""
    white = " (white)" if summary["transparent"] else ""
    return f"{modes}; {summary['transparent']:,} with transparency{white}{frames}"


def _pixels(pixels: Mapping[str, Any]) -> str:
    count = pixels["images"]
    color = {0: "all in color", count: "all grey"}.get(pixels["grey"], f"{pixels['grey']:,} grey")
    parts = [color] + ([f"{pixels['blank']:,} of one color"] if pixels["blank"] else [])
    if hint := range_hint(pixels["largest"]):
        parts.append(hint)
    if pixels["constant_channels"]:
        parts.append(f"{', '.join(pixels['constant_channels'])} almost constant")
    return f"{', '.join(parts)} (of {count:,} training images)"


def _copies(summary: Mapping[str, Any], kind_of: str = "duplicates") -> str:
    copies, unit = summary[kind_of], _unit(summary)
    found = (f"{text.format(unit=unit)}: {copies[kind]:,}" for kind, text in COPIES.items() if copies[kind])
    return "; ".join(found) or "none"


def _near_copies(summary: Mapping[str, Any]) -> str:
    near = summary["near_duplicates"]
    if not near["judged"]:
        return "not judged: images of different classes look alike"
    compared, different = near["compared"], near["different"]
    return _copies(summary, "near_duplicates") + (
        f" (among {compared:,} of {different:,} different images)" if compared < different else ""
    )


def _examples(summary: Mapping[str, Any], most: int = 1) -> list[tuple[str, str, str]]:
    """Return examples of copies: the kind and two images."""
    pairs = {
        (f"{how} copy", *sorted(pair))
        for how, copies in (("exact", summary["duplicates"]), ("near", summary.get("near_duplicates", {})))
        for kind in ("test_copies", "in_two_classes")
        for pair in copies.get(f"{kind}_examples", ())[:most]
    }
    return sorted(pairs)


def _left_out(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in left_out.items())


def _gate(summary: Mapping[str, Any]) -> str:
    gate, groups = summary["gate"], summary.get("groups", {}).get("test", summary["test"])
    grouped = ", if all are independent: those of one group are not" if groups < summary["test"] else ""
    if gate["too_few_groups"]:
        grouped += f"; {FEWEST_GROUPS} test groups of equal size are needed, and there are {groups:,}"
    return (
        f"{summary['test']:,} test {_unit(summary)}s; a limit of {gate['limit_pp']:g} pp needs at least "
        f"{gate['least_test_images']:,}, and about {gate['likely_test_images']:,} if INT8 changes "
        f"{gate['likely_changed_pct']:g} % of the predictions{grouped}"
    )


def _defaults(defaults: Mapping[str, Any] | None) -> str:
    if defaults is None:
        return "unknown: PyTorch is not installed"
    mirrored = (
        "images are mirrored (mirror images look like their class)"
        if defaults["mirrored"]
        else "images are not mirrored (mirror images look like other classes)"
    )
    start = "whitening start (images have color)" if defaults["init"] == "whitening" else "random start (grey images)"
    channels = "one channel" if defaults["color"] == "grey" else "three channels"
    return f"{mirrored}; {start}; {channels}"

"""The tables of a study: mean and spread per method and length, and what each differs by from others."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kdedge.pipeline.distill.methods import CONTROL, METHODS
from kdedge.pipeline.study.cells import Row
from kdedge.pipeline.study.statistics import paired_difference

__all__ = ["alarms", "render", "summarise"]


def summarise(rows: Sequence[Row], control: str) -> list[dict[str, Any]]:
    """Return one entry per method and number of epochs, in the order of the rows.

    Args:
        rows: From `kdedge.pipeline.study.training.run_cells`.
        control: Name of the rows that the others of the same number of epochs are compared with.

    Returns:
        Mappings with ``method``, ``epochs``, ``seeds``, ``diverged``, means over the seeds of the row's columns, and
        ``sd`` of the validation accuracy (None with one seed). ``compared`` is a list of what it is compared with and
        has a seed in common with: the control and, of methods, `kd` if this one has hints and the one that it builds
        on. Each has ``to`` (a name), and for the validation accuracy ``val`` and the INT8 test accuracy ``test``:
        ``difference_pp``, ``interval_pp`` (half width), ``verdict`` and ``common_seeds``, of which they are. Of the
        ``tested_seeds`` seeds whose test results are known are the means of the test accuracies, ``int8_test_sd``, and
        ``int8_loss_pp`` with ``int8_loss_sd``: FP32 minus INT8 test accuracy.
    """
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["epochs"], row["method"]), []).append(row)
    entries = []
    for (epochs, method), group in groups.items():
        done = [row for row in group if row["status"] == "done"]
        fp32, int8 = _by_seed(group, _FP32), _by_seed(group, _INT8)
        losses = {seed: fp32[seed] - top1 for seed, top1 in int8.items() if seed in fp32}
        entry: dict[str, Any] = {
            "method": method,
            "epochs": epochs,
            "seeds": len(done),
            "diverged": len(group) - len(done),
            "sd": _spread(_by_seed(group)),
            "compared": [
                {"to": name, "val": _difference(group, others), "test": _difference(group, others, _INT8)}
                for name in _partners(method, control)
                if (others := groups.get((epochs, name), [])) and _by_seed(group).keys() & _by_seed(others)
            ],
            "tested_seeds": len(int8),
            "int8_test_sd": _spread(int8),
            "int8_loss_pp": statistics.fmean(losses.values()) if losses else None,
            "int8_loss_sd": _spread(losses),
        }
        for column in _MEANS:
            values = [row[column] for row in done if row.get(column) is not None]
            # A mean over the seeds that got there would hide those that did not; that a seed was not measured on test
            # images says nothing of it.
            complete = len(values) == len(done) or column in (_FP32, _INT8)
            entry[column] = statistics.fmean(values) if values and complete else None
        entries.append(entry)
    return entries


def alarms(summary: Sequence[Mapping[str, Any]], control: str) -> list[str]:
    """Return what a reader must know first.

    In any case that is a sentence for differences of one seed, for lengths without the control, for seeds that
    diverged, for hints that drowned the other terms (`kdedge.pipeline.stages.distill.DROWNED_PCT`), and for an adaptive
    beta that did not adapt. If the control is the method without a teacher, also for a teacher that is not better than
    it, for every method that is not or by its interval is not shown to be, for hints that are no better than none, for
    a method that is no better than the one that it builds on, and for a choice of blocks that is no better than
    another: on validation images, or in INT8 on test images where that is known.
    """
    from kdedge.pipeline.stages.distill import DROWNED_PCT

    found = [*_of_one_seed(summary), *_without_control(summary, control)]
    for entry in summary:
        name = f"{entry['method']}, {entry['epochs']} epochs"
        if entry["method"] == control == CONTROL and entry["seeds"] and entry["teacher_gap_pp"] <= 0:
            found.append(
                f"the teacher is not better than {control}, {entry['epochs']} epochs: "
                f"{abs(entry['teacher_gap_pp']):.2f} pp below."
            )
        for compared in entry["compared"] if control == CONTROL else ():
            to = compared["to"]
            if to == control:
                found += _no_gain(name, f"its control {control}", compared, entry["seeds"])
            elif to == _NO_HINTS:
                found += _no_gain(name, f"{_NO_HINTS}, which has no hints", compared, entry["seeds"])
            elif entry["method"] in _OTHER_BLOCKS:
                chosen = next(e for e in summary if (e["method"], e["epochs"]) == (to, entry["epochs"]))
                chosen_name = f"{to}, {entry['epochs']} epochs"
                turned = {"val": _turned(compared["val"]), "test": _turned(compared["test"])}
                found += _no_gain(chosen_name, entry["method"], turned, chosen["seeds"])
            else:
                found += _no_gain(name, f"{to}, which it builds on", compared, entry["seeds"])
        if entry["diverged"]:
            rest = "; its means are of the others." if entry["seeds"] else "."
            found.append(f"{name}: {entry['diverged']} of {entry['diverged'] + entry['seeds']} seeds diverged{rest}")
        if entry["drowned_epochs"]:
            found.append(
                f"{name}: on the first batch of {entry['drowned_epochs']:.1f} of them on average, hints supplied more "
                f"than {DROWNED_PCT:.0f} % of the gradient."
            )
        if entry["beta_halvings"] == 0:
            found.append(f"{name}: beta was never halved, so while hints last these are runs with a constant beta.")
    return found


def render(
    title: str,
    summary: Sequence[Mapping[str, Any]],
    warnings: Sequence[str],
    notes: Sequence[str],
    *,
    reach: float,
) -> str:
    """Return the Markdown page: warnings, tables, notes.

    Args:
        title: Heading.
        summary: From `summarise`.
        warnings: What a reader must see first.
        notes: How the numbers came about.
        reach: Validation accuracy in percent whose first epoch is in the table.
    """
    lines = [f"# {title}", ""]
    for warning in warnings:
        lines += [f"> **Alarm:** {warning}", ""]
    tested = any(entry["int8_test_top1_pct"] is not None for entry in summary)
    several = any(entry["seeds"] > 1 for entry in summary)
    head = ["", "validation top-1 %", *["INT8 test top-1 %", "FP32 minus INT8 test, pp"] * tested]
    head += ["validation loss", "teacher minus student, pp"]
    head += ["shipped", "trained", "hint maps, MB", "scan, s", "s an epoch", f"epochs to {reach:g} %"]
    for epochs in dict.fromkeys(entry["epochs"] for entry in summary):
        entries = [entry for entry in summary if entry["epochs"] == epochs]
        lines += [f"## {epochs} epochs", "", *_table(head, [_cells(entry, tested, several) for entry in entries])]
        if differences := [line for entry in entries for line in _differences(entry, tested)]:
            columns = ["", "validation, pp (95 %)", *["INT8 test, pp (95 %)"] * tested]
            lines += [f"Differences after {epochs} epochs:", "", *_table(columns, differences)]
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


_MEANS = (
    "val_top1_pct", "val_ce", "teacher_gap_pp", "params", "trained_params", "hint_map_bytes", "scan_s",
    "median_epoch_s", "drowned_epochs", "beta_halvings", "reach_epochs", "fp32_test_top1_pct", "int8_test_top1_pct",
)  # fmt: skip


_FP32, _INT8 = "fp32_test_top1_pct", "int8_test_top1_pct"
_NO_HINTS = "kd"
_OTHER_BLOCKS = ("random3", "last3", "all")  # what `selective` must beat for its choice to be worth something


def _by_seed(rows: Sequence[Row], column: str = "val_top1_pct") -> dict[int, float]:
    return {row["seed"]: row[column] for row in rows if row["status"] == "done" and row.get(column) is not None}


def _spread(values: Mapping[int, float]) -> float | None:
    return statistics.stdev(values.values()) if len(values) > 1 else None


def _difference(rows: Sequence[Row], others: Sequence[Row], column: str = "val_top1_pct") -> dict[str, Any]:
    """Return the paired difference of two groups of rows as part of an entry."""
    difference = paired_difference(_by_seed(rows, column), _by_seed(others, column))
    return {
        "difference_pp": difference.mean if difference else None,
        "interval_pp": difference.half_width if difference else None,
        "verdict": difference.verdict if difference else "",
        "common_seeds": difference.seeds if difference else 0,
    }


def _partners(method: str, control: str) -> list[str]:
    """Return the names of what a method or variation is compared with."""
    names = [control]
    if control == CONTROL:
        names += [_NO_HINTS] * (METHODS[method].blocks is not None) + [METHODS[method].builds_on]
    return [name for name in dict.fromkeys(names) if name not in ("", method)]


def _turned(difference: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a difference with its two sides exchanged."""
    if difference["difference_pp"] is None:
        return difference
    verdict = {"better": "worse", "worse": "better"}.get(difference["verdict"], difference["verdict"])
    return {**difference, "difference_pp": 0.0 - difference["difference_pp"], "verdict": verdict}  # not -0.0


def _of_one_seed(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which differences are of one seed, by which nothing can be told from chance."""
    verdicts = [
        [verdict for other in entry["compared"] for split in ("val", "test") if (verdict := other[split]["verdict"])]
        for entry in summary
    ]
    lonely = [entry for entry, found in zip(summary, verdicts, strict=True) if "one seed" in found]
    if not lonely:
        return []
    names = "; ".join(f"{entry['method']}, {entry['epochs']} epochs" for entry in lonely)
    every = {verdict for found in verdicts for verdict in found} == {"one seed"}
    what = "no difference on this page" if every else f"no difference of one seed ({names})"
    return [f"{what} is resolved: two seeds of one method differ as well. --seeds 0,1,2 gives intervals."]


def _without_control(summary: Sequence[Mapping[str, Any]], control: str) -> list[str]:
    there = {entry["epochs"] for entry in summary if entry["method"] == control and entry["seeds"]}
    missing = sorted({entry["epochs"] for entry in summary} - there)
    if not missing:
        return []
    lengths = " and ".join(map(str, missing))
    return [f"no {control} of {lengths} epochs is finished, so nothing of that length is compared with it."]


def _no_gain(name: str, other: str, compared: Mapping[str, Any], seeds: int) -> list[str]:
    """Say that something is not better than another on validation or test images, if so."""
    known = [compared[split] for split in ("val", "test") if compared[split]["difference_pp"] is not None]
    lost = [difference["difference_pp"] <= 0 for difference in known]
    if not any(lost) and all(difference["verdict"] != "not resolved" for difference in known):
        return []
    shown = "is not better" if all(lost) else "is not shown to be better"
    said = "; INT8 on test images ".join(_compared(difference, seeds, " pp") for difference in known)
    return [f"{name}, {shown} than {other}: {said}."]


def _cells(entry: Mapping[str, Any], tested: bool, several: bool) -> list[str]:
    """Return the row of an entry; ``several``: some row is of more than one seed, so that each says of how many."""
    if not entry["seeds"]:
        return [entry["method"], "diverged"]
    seeds = entry["seeds"]
    accuracy = _with_sd(entry["val_top1_pct"], entry["sd"])
    if several:
        accuracy += f" ({seeds} seed{'s' * (seeds > 1)})"
    if entry["diverged"]:
        accuracy += f", {entry['diverged']} diverged"
    of = f" ({entry['tested_seeds']} of {seeds} seeds)" if 0 < entry["tested_seeds"] < seeds else ""
    test = [
        _with_sd(entry[_INT8], entry["int8_test_sd"]) + of,
        _with_sd(entry["int8_loss_pp"], entry["int8_loss_sd"]),
    ]
    return [
        entry["method"],
        accuracy,
        *(test if tested else []),
        _number(entry["val_ce"], ".3f"),
        _number(entry["teacher_gap_pp"], ".2f"),
        f"{entry['params'] / 1e6:.2f} M",
        f"{entry['trained_params'] / 1e6:.2f} M",
        f"{entry['hint_map_bytes'] / 1e6:.1f}",
        _number(entry["scan_s"], ".1f"),
        _number(entry["median_epoch_s"], ".0f"),
        _number(entry["reach_epochs"], ".1f").removesuffix(".0"),
    ]


def _differences(entry: Mapping[str, Any], tested: bool) -> list[list[str]]:
    """Return a row for everything that an entry is compared with."""
    keys = ("val", "test") if tested else ("val",)
    return [
        [f"{entry['method']} to {other['to']}", *(_compared(other[key], entry["seeds"]) for key in keys)]
        for other in entry["compared"]
    ]


def _with_sd(mean: float | None, sd: float | None) -> str:
    return _number(mean, ".2f") + ("" if mean is None or sd is None else f" ± {sd:.2f}")


def _compared(difference: Mapping[str, Any], seeds: int, unit: str = "") -> str:
    """Return a difference for a row of ``seeds`` seeds, and its verdict."""
    said = ", ".join(part for part in (difference["verdict"], _common(difference, seeds)) if part)
    return _gain(difference) + unit + (f" ({said})" if said else "")


def _gain(difference: Mapping[str, Any]) -> str:
    if difference["difference_pp"] is None:
        return "–"
    text = f"{difference['difference_pp']:+.2f}"
    return text if difference["interval_pp"] is None else f"{text} ± {difference['interval_pp']:.2f}"


def _common(difference: Mapping[str, Any], seeds: int) -> str:
    """Say how many seeds a difference is of if the means beside it are of more."""
    common = difference["common_seeds"]
    return f"{common} common seed{'s' * (common > 1)}" if 0 < common < seeds else ""


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]

"""The Markdown page of a study: alarms, tables, notes."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdedge.pipeline.distill.methods import CONTROL
from kdedge.pipeline.study.cells import Rows
from kdedge.pipeline.study.summary import INT8

__all__ = ["alarms", "notes", "render"]

Entry = Mapping[str, Any]


def alarms(summary: Sequence[Entry], control: str) -> list[str]:
    """Return the sentences that a reader must see first.

    Args:
        summary: From `kdedge.pipeline.study.summary.summarise`.
        control: Name of the method or variation that the others are compared with. If it is the method without a
            teacher, a method that is not shown to be better than another is an alarm.
    """
    from kdedge.pipeline.stages.distill import HINT_DOMINATED_PCT

    found = []
    if any(other[split]["verdict"] == "one seed" for e in summary for other in e["compared"] for split in _SPLITS):
        found.append("a difference of one seed is not resolved; use --seeds 0,1,2 for intervals.")
    finished = {entry["epochs"] for entry in summary if entry["method"] == control and entry["seeds"]}
    if missing := sorted({entry["epochs"] for entry in summary} - finished):
        found.append(f"no {control} of {' and '.join(map(str, missing))} epochs is finished to compare with.")
    for entry in summary:
        name = f"{entry['method']}, {entry['epochs']} epochs"
        if control == CONTROL:
            if entry["method"] == control and entry["seeds"] and entry["teacher_gap_pp"] <= 0:
                found.append(f"the teacher is not better than {name}: {abs(entry['teacher_gap_pp']):.2f} pp below.")
            found += [text for other in entry["compared"] if (text := _no_gain(name, other, entry["seeds"]))]
        if entry["diverged"]:
            found.append(f"{name}: {entry['diverged']} of {entry['diverged'] + entry['seeds']} seeds diverged.")
        if entry["drowned_epochs"]:
            found.append(
                f"{name}: the hint loss dominated the gradient (> {HINT_DOMINATED_PCT:.0f} %) in "
                f"{entry['drowned_epochs']:.1f} epochs per seed."
            )
        if entry["beta_halvings"] == 0:
            found.append(f"{name}: beta was never halved.")
    return found


def notes(
    known: Rows,
    teacher: Mapping[str, Any],
    *,
    total: int,
    unfinished: Sequence[str],
    command: str,
    data_name: str,
    train_sha256: str,
) -> list[str]:
    """Return the conditions and caveats of the numbers, in Markdown.

    Args:
        known: The rows so far, at least one.
        teacher: Manifest of the teacher.
        total: Number of cells of the study.
        unfinished: Directories of cells that other commands began and did not finish.
        command: The command line, for the record.
        data_name: Name of the data set.
        train_sha256: Of its training images.
    """
    config, rows = next(iter(known)).config, list(known.values())
    data, runtime, metrics = config.data, config.runtime, teacher["facts"]
    done = [row for row in rows if row["status"] == "done"]
    size = f"a subset of {data.train_size:,}" if data.train_size else "all"
    commits = dict.fromkeys(commit for row in done for commit in str(row["commit"]).split(", "))
    seen = metrics["train_images"] if metrics["epochs"] else 0
    trained = f"training set of {seen:,}" if seen else "weights as given"
    found = [
        f"{len(rows)} of {total} cells. Accuracies and losses are of the validation data. These also decide "
        "beta, the end of hints and the blocks of dynamic.",
        "± is the standard deviation over seeds, and for a difference the 95 % interval, paired by seed (Student t). "
        "Intervals contain neither the choice of teacher and data nor a correction for several comparisons.",
        f"Training data: {size} of {data_name}; recipe: {config.distill.recipe}.",
        f"Teacher: {metrics['arch']}, {trained}, {metrics['val_top1_pct']:.2f} % on its own validation data.",
        "Seconds per epoch contain validation. The first run computes the teacher's logits, later runs read them.",
        f"Command: `{command}`. All options, also those of a file of `--config`, are in `config.json`.",
        f"Commit: {', '.join(commits)}. Hardware: {', '.join(dict.fromkeys(str(row['hardware']) for row in done))}; "
        f"{runtime.device}, {runtime.precision}, threads: {runtime.threads}.",
    ]
    if unfinished:
        found.append(f"Interrupted or diverged, so not in these tables: {', '.join(unfinished)}.")
    fewest = min((row["train_size"] for row in done), default=seen)
    if fewest < seen or (data.train_size and not seen):
        more = f"{seen:,}" if seen else "unknown size"
        found.append(f"The students have a training set of {fewest:,}, their teacher one of {more}.")
    held_out = teacher["config"].get("data", {}).get("val_fraction")
    if teacher["inputs"].get("data/train") != train_sha256 or held_out != data.val_fraction:
        found.append("The teacher has another split or other data: it may have seen some of the validation data.")
    return found


def render(
    title: str, summary: Sequence[Entry], warnings: Sequence[str], remarks: Sequence[str], *, target_accuracy: float
) -> str:
    """Return the Markdown page.

    Args:
        title: Heading.
        summary: From `kdedge.pipeline.study.summary.summarise`.
        warnings: From `alarms`.
        remarks: From `notes`.
        target_accuracy: Validation top-1 in percent whose first epoch is in the table.
    """
    lines = [f"# {title}", ""]
    for warning in warnings:
        lines += [f"> **Alarm:** {warning}", ""]
    tested = any(entry[INT8] is not None for entry in summary)
    several = any(entry["seeds"] > 1 for entry in summary)
    head = ["", "validation top-1 %", *["INT8 test top-1 %", "FP32 minus INT8 test, pp"] * tested]
    head += ["validation loss", "teacher minus student, pp", "shipped", "trained", "hint maps, MB", "scan, s"]
    head += ["s an epoch", f"epochs to {target_accuracy:g} %"]
    for epochs in dict.fromkeys(entry["epochs"] for entry in summary):
        entries = [entry for entry in summary if entry["epochs"] == epochs]
        lines += [f"## {epochs} epochs", "", *_table(head, [_cells(entry, tested, several) for entry in entries])]
        differences = [
            [f"{e['method']} to {other['to']}", *(_compared(other[s], e["seeds"]) for s in _SPLITS[: 1 + tested])]
            for e in entries
            for other in e["compared"]
        ]
        if differences:
            columns = ["", "validation, pp (95 %)", *["INT8 test, pp (95 %)"] * tested]
            lines += [f"Differences after {epochs} epochs:", "", *_table(columns, differences)]
    lines += [f"- {remark}" for remark in remarks]
    return "\n".join(lines) + "\n"


_SPLITS = ("val", "test")


def _no_gain(name: str, other: Entry, seeds: int) -> str:
    """Return an alarm if a method is not shown to be better than another, or an empty string."""
    known = [other[split] for split in _SPLITS if other[split]["difference_pp"] is not None]
    lost = [difference["difference_pp"] <= 0 for difference in known]
    if not any(lost) and all(difference["verdict"] != "not resolved" for difference in known):
        return ""
    shown = "is not better" if all(lost) else "is not shown to be better"
    return f"{name}, {shown} than {other['to']}: {'; INT8 test '.join(_compared(one, seeds, ' pp') for one in known)}."


def _cells(entry: Entry, tested: bool, several: bool) -> list[str]:
    """Return the table row of an entry; ``several``: a row has more than one seed, so each names its number."""
    if not entry["seeds"]:
        return [entry["method"], "diverged"]
    seeds = entry["seeds"]
    accuracy = _with_sd(entry["val_top1_pct"], entry["sd"])
    accuracy += f" ({seeds} seed{'s' * (seeds > 1)})" if several else ""
    accuracy += f", {entry['diverged']} diverged" if entry["diverged"] else ""
    of = f" ({entry['tested_seeds']} of {seeds} seeds)" if 0 < entry["tested_seeds"] < seeds else ""
    test = [_with_sd(entry[INT8], entry["int8_test_sd"]) + of, _with_sd(entry["int8_loss_pp"], entry["int8_loss_sd"])]
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


def _compared(difference: Entry, seeds: int, unit: str = "") -> str:
    """Return a difference and its verdict for a row of ``seeds`` seeds."""
    if difference["difference_pp"] is None:
        return "–"
    common = difference["common_seeds"]
    text = f"{difference['difference_pp']:+.2f}"
    text += f" ± {difference['interval_pp']:.2f}" if difference["interval_pp"] is not None else ""
    fewer = f", {common} common seed{'s' * (common > 1)}" if common < seeds else ""
    return f"{text}{unit} ({difference['verdict']}{fewer})"


def _with_sd(mean: float | None, sd: float | None) -> str:
    return _number(mean, ".2f") + ("" if mean is None or sd is None else f" ± {sd:.2f}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]

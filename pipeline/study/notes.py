"""The notes below the tables of a study: how its numbers came about, and what they do not say."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.distill.methods import CONTROL
from kdedge.pipeline.study.cells import Cell, Row, Rows

__all__ = ["study_notes"]

Facts = Mapping[str, Any]


def study_notes(
    known: Rows,
    students: Sequence[Facts],
    teacher: Mapping[str, Any],
    *,
    total: int,
    begun: Sequence[str],
    control: str,
    command: str,
    data_name: str,
    train_sha256: str,
) -> list[str]:
    """Return the notes, each of one or more sentences in Markdown.

    Args:
        known: The rows so far, at least one, as `kdedge.pipeline.study.training.run_cells` reports them.
        students: Facts of each row's finished distillation; empty of a cell that diverged.
        teacher: Manifest of their teacher.
        total: How many cells the study has.
        begun: What other commands began in its directory and did not finish.
        control: Name of the cells that the others are compared with.
        command: The command line, for the record.
        data_name: Name of the data set.
        train_sha256: Of its training images.
    """
    cells, rows = list(known), list(known.values())
    data, runtime = cells[0].config.data, cells[0].config.runtime
    done = [row for row in rows if row["status"] == "done"]
    size = f"a subset of {data.train_size:,}" if data.train_size else "all"
    commits = dict.fromkeys(commit for row in done for commit in str(row["commit"]).split(", "))
    hardware = dict.fromkeys(str(row["hardware"]) for row in done)
    notes = [
        f"{len(rows)} of {total} cells; accuracies and losses are of the validation images. No student was trained on "
        "them, but they decide when beta falls, when hints end and what dynamic chooses."
    ]
    if begun:
        notes.append(f"Begun and not finished (interrupted, or diverged), so not in these tables: {'; '.join(begun)}.")
    tested = sum(row.get("int8_test_top1_pct") is not None for row in done)
    if tested:
        notes.append(
            f"Columns of the test images: known of {tested} of {total} cells, each measured after the last "
            "training of the command that asked for it."
        )
    return [
        *notes,
        "±: standard deviation over seeds; of a difference: 95 % interval, paired by seed, Student t. An effect "
        "smaller than its interval is not resolved, nor one that seeds give alike; with one seed there is no interval. "
        "Intervals cover the seed of the students alone: all have one teacher, held-out images and views, and nothing "
        "is corrected for the number of comparisons. Of few seeds an interval can be narrower by chance than that of "
        "the images that were judged on.",
        f"Training images: {size} of {data_name}; recipe: {cells[0].config.distill.recipe}.",
        *_teacher_notes(teacher, done, data, train_sha256),
        *_hint_notes(cells, students),
        *_logit_notes(cells, students),
        *_variation_notes(cells, control),
        "Hint maps: what the teacher's maps that hints aim at take in one batch, at most; what adapters and gradients "
        "take comes on top. Trained: with the adapters, which are not shipped. Seconds: the median epoch, with "
        "validation.",
        f"Command: `{command}`",
        f"Commit: {', '.join(commits)}. Hardware: {', '.join(hardware)}; {runtime.device}, {runtime.precision}, "
        f"threads: {runtime.threads}.",
    ]


def _teacher_notes(teacher: Mapping[str, Any], done: Sequence[Row], data: DataConfig, train_sha256: str) -> list[str]:
    """Say what the teacher is, and what it may have seen that its students have not."""
    facts, held_out = teacher["facts"], teacher["config"].get("data", {}).get("val_fraction")
    seen = facts["train_images"] if facts["epochs"] else 0  # without an epoch its weights are as they were given
    trained = f"trained on {seen:,} images" if seen else "with weights that it was given (of images not known here)"
    notes = [f"Teacher: {facts['arch']}, {trained}, {facts['val_top1_pct']:.2f} % on its own validation images."]
    fewest = min((row["train_size"] for row in done), default=seen)
    if fewest < seen:
        notes.append(
            f"The students were trained on {fewest:,} images and their teacher on {seen:,}: gains of what learns from "
            "it contain what it alone has seen."
        )
    elif data.train_size and not seen:
        notes.append(
            f"The students were trained on {fewest:,} images, their teacher perhaps on more: gains of what learns from "
            "it may contain what it alone has seen."
        )
    if teacher["inputs"].get("data/train") != train_sha256:
        notes.append(
            "The teacher was trained on other images: it may have seen some of these validation images, and its "
            "accuracy beside that of its students is of others."
        )
    elif held_out != data.val_fraction:
        notes.append(
            f"The teacher held out a share of {held_out}, not of {data.val_fraction}: it may have been trained on some "
            "of these validation images."
        )
    return notes


def _hint_notes(cells: Sequence[Cell], students: Sequence[Facts]) -> list[str]:
    """List the blocks that hints were at by length and name, by seed where seeds differ, and the hint-only epochs."""
    seeds: dict[tuple[int, str, int], dict[str, list[int]]] = {}
    for cell, facts in zip(cells, students, strict=True):
        if facts and facts["hint_pairs"]:
            settings = cell.config.distill
            by_blocks = seeds.setdefault((settings.epochs, cell.name, settings.hint_only_epochs), {})
            by_blocks.setdefault(_blocks(facts), []).append(cell.config.runtime.seed)
    names: dict[tuple[int, str], list[str]] = {}
    for (epochs, name, alone), by_blocks in seeds.items():
        parts = [
            blocks + (f" (seed {', '.join(map(str, of))})" if len(by_blocks) > 1 else "")
            for blocks, of in by_blocks.items()
        ]
        if alone:
            parts.append(f"hints alone in the first {alone} epochs" if alone > 1 else "hints alone in the first epoch")
        names.setdefault((epochs, "; ".join(parts)), []).append(name)
    lines = [f"\n  - {epochs} epochs, {', '.join(alike)}: {text}" for (epochs, text), alike in names.items()]
    return ["Blocks of the teacher that hints were at:" + "".join(lines)] if lines else []


def _logit_notes(cells: Sequence[Cell], students: Sequence[Facts]) -> list[str]:
    """Name the cells whose minutes contain what others found in the cache."""
    names = [str(cell) for cell, facts in zip(cells, students, strict=True) if facts.get("logits_computed")]
    if not names:
        return []
    return [
        f"Seconds contain computing logits of the teacher, which the others found in the cache: {'; '.join(names)}."
    ]


def _variation_notes(cells: Sequence[Cell], control: str) -> list[str]:
    """Say in what a variation differs from the control, where it takes more than one option."""
    if control == CONTROL:
        return []  # methods; what they are does not depend on options
    options = {cell.name: dataclasses.asdict(cell.config.distill) for cell in cells}
    base = options.get(control, {})
    lines = []
    for name, settings in options.items():
        changed = [f"{key} {settings[key]}" for key in base if settings[key] != base[key] and key != "epochs"]
        if len(changed) > 1:
            lines.append(f"\n  - {name}: {', '.join(changed)}")
    return ["Variations of several options:" + "".join(lines)] if lines else []


def _blocks(facts: Facts) -> str:
    """Name the blocks that a student learnt from; if they were chosen again, every choice that changed them."""
    chosen = [block for block, _ in facts["hint_pairs"]]
    choices = facts["hint_choices"] or [{"epoch": 0, "chosen": chosen}]
    texts = [", ".join(choices[0]["chosen"])]
    for before, choice in pairwise(choices):
        if choice["chosen"] != before["chosen"]:
            texts.append(f"from epoch {choice['epoch'] + 1} on {', '.join(choice['chosen'])}")
    return ", ".join(texts)

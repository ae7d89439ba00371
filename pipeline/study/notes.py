"""The notes below the tables of a study: how its numbers came about, and what they do not say."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.study.cells import Cell, Row

__all__ = ["study_notes"]


def study_notes(
    cells: Sequence[Cell],
    rows: Sequence[Row],
    teacher: Mapping[str, Any],
    *,
    control: str,
    command: str,
    data_name: str,
) -> list[str]:
    """Return the notes, each of one or more sentences in Markdown.

    Args:
        cells: All cells of the study, at least one.
        rows: Of the first of them, as `pipeline.study.cells.run_cells` reports them.
        teacher: Manifest of their teacher.
        control: Name of the cells that the others are compared with.
        command: The command line, for the record.
        data_name: Name of the data set.
    """
    data, runtime, facts = cells[0].config.data, cells[0].config.runtime, teacher["facts"]
    done = [row for row in rows if row["status"] == "done"]
    tested = sum(row.get("int8_test_top1_pct") is not None for row in done)
    size = f"a subset of {data.train_size:,}" if data.train_size else "all"
    commits, hardware = ({str(row[key]): None for row in done} for key in ("commit", "hardware"))
    notes = []
    if not any(cell.name == control for cell in cells):
        notes.append(f"The control {control} is not among the cells, so there are no differences.")
    notes += [
        f"{len(rows)} of {len(cells)} cells; accuracies and losses are of the validation images, which no student was "
        "trained on.",
        *[
            f"Columns of the test images: known of {tested} of {len(cells)} cells, each measured after the last "
            "training of the command that asked for it."
        ]
        * bool(tested),
        "±: standard deviation over seeds; of a difference: 95 % interval, paired by seed, Student t. An effect "
        "smaller than its interval is not resolved; with one seed there is no interval.",
        f"Training images: {size} of {data_name}; recipe: {cells[0].config.distill.recipe}.",
        f"Teacher: {facts['arch']}, {facts['val_top1_pct']:.2f} % on its own validation images. Hint maps: what the "
        "teacher's maps take in one batch. Trained: with the adapters, which are not shipped.",
        f"Command: `{command}`",
        f"Commit: {', '.join(commits)}. Hardware: {', '.join(hardware)}; {runtime.device}, {runtime.precision}, "
        f"threads: {runtime.threads}.",
    ]
    held_out = teacher["config"].get("data", {}).get("val_fraction")
    if held_out != data.val_fraction:
        notes.append(
            f"The teacher held out a share of {held_out}, not of {data.val_fraction}: it may have been trained on some "
            "of these validation images."
        )
    return notes

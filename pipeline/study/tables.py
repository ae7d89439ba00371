"""The tables of a study: of the finished cells in its directory, wherever they were trained.

``evaluation_results.csv`` (a row per cell), ``block_variances.csv`` (the scan) and ``comparison.md``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdedge.files import csv_bytes, write_atomic
from kdedge.manifest import load_manifest
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.run_dir import lock_run
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.study.cells import COLUMNS, Cell, Row, Rows, Study, identity, link_stage, row_of
from kdedge.pipeline.study.finished import begun_elsewhere, divergence, is_finished, with_finished
from kdedge.pipeline.study.page import alarms, notes, render
from kdedge.pipeline.study.summary import summarise
from kdedge.progress import warn_once

__all__ = ["OTHER_FILES", "RESULTS", "Tables"]

RESULTS = "evaluation_results.csv"
_SCAN, _PAGE = "block_variances.csv", "comparison.md"
OTHER_FILES = (_SCAN, _PAGE, "figures")
_SCAN_COLUMNS = ("method", "epochs", "seed", "block", "variance", "chosen")


@dataclass
class Tables:
    """The tables of a study.

    Attributes:
        study: The kind of study.
        cells: The cells of the command, in the order of the tables.
        config: Options that all cells share.
        out: Directory of the study.
        teacher_dir: Directory of the teacher.
        teacher: Manifest of the teacher.
        target_accuracy: Validation accuracy in percent whose first epoch is reported.
        command: The command line, for the page.
        rows: Rows of the cells that have ended, of this command and of earlier ones.
        result: ``rows``, ``summary``, ``alarms`` and the path of the ``page``; empty before the first row.
    """

    study: Study
    cells: Sequence[Cell]
    config: Config
    out: Path
    teacher_dir: Path
    teacher: Mapping[str, Any]
    target_accuracy: float
    command: str
    rows: Rows = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def ended(self, cell: Cell) -> bool:
        """Return whether a cell is finished or diverged."""
        return is_finished(cell, self.out, self.teacher) or bool(divergence(cell, self.out, self.teacher))

    def update(self) -> None:
        """Add the cells that have ended, and write the tables.

        Raises:
            InputError: The directory cannot be written.
        """
        cells = with_finished(self.cells, self.study, self.config, self.out, self.teacher)
        ended = {cell: self._row(cell) for cell in cells if self.rows.get(cell, {}).get("status") != "done"}
        self.rows = {cell: row for cell in cells if (row := ended.get(cell) or self.rows.get(cell))}
        if self.rows:
            with lock_run(self.out, wait=True):
                self._write()

    def _row(self, cell: Cell) -> Row:
        """Return the row of a cell that has ended, otherwise an empty one."""
        directory = cell.directory(self.out)
        if is_finished(cell, self.out, self.teacher):
            link_stage(self.teacher_dir, directory / "teacher")
            return row_of(cell, directory, self.target_accuracy)
        if reason := divergence(cell, self.out, self.teacher):
            warn_once(f"{cell}: {reason}")
            return {**identity(cell), "status": "diverged"}
        return {}

    def _write(self) -> None:
        rows = list(self.rows.values())
        summary = summarise(rows, self.study.control)
        warnings = alarms(summary, self.study.control)
        # The directory of a diverged cell may have the student of an earlier command.
        students = [
            load_manifest(cell.directory(self.out) / "distill")["facts"] if row["status"] == "done" else {}
            for cell, row in self.rows.items()
        ]
        remarks = notes(
            self.rows,
            self.teacher,
            total=len({*self.cells, *self.rows}),
            unfinished=begun_elsewhere(list(self.rows), self.out),
            command=self.command,
            data_name=open_dataset(self.config.data).name,
            train_sha256=STAGES["distill"].data(self.config)["train"],
        )
        page = render(self.study.title, summary, warnings, remarks, target_accuracy=self.target_accuracy)
        write_atomic(self.out / RESULTS, csv_bytes(COLUMNS, rows))
        write_atomic(self.out / _SCAN, csv_bytes(_SCAN_COLUMNS, _scan_rows(rows, students)))
        write_atomic(self.out / _PAGE, page.encode())
        self.result |= {"rows": rows, "summary": summary, "alarms": warnings, "page": str(self.out / _PAGE)}


def _scan_rows(rows: Sequence[Row], students: Sequence[Mapping[str, Any]]) -> list[Row]:
    scans = []
    for row, metrics in zip(rows, students, strict=True):
        if not metrics:
            continue
        chosen = {block for block, _ in metrics["hint_pairs"]}
        scans += [
            {key: row[key] for key in _SCAN_COLUMNS[:3]}
            | {"block": block, "variance": variance, "chosen": int(block in chosen)}
            for block, variance in metrics["block_variances"].items()
        ]
    return scans

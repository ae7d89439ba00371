"""The comparison of methods: methods x epochs x seeds, all with one teacher and one recipe.

    kdedge compare --methods ce,kd,selective --epochs 20,40 --seeds 0,1,2 --out artifacts/compare

Writes ``evaluation_results.csv`` (a row per cell), ``block_variances.csv`` (the scan) and ``comparison.md`` after every
cell, figures at the end. A later command with other methods, lengths or seeds in the same directory adds to the tables
of finished cells with the same teacher and the same other options. Results are of validation images; only ``--test``
reads test images, at the end.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.files import write_atomic, write_json
from kdedge.machine import usable_cores
from kdedge.manifest import load_manifest, output_damage
from kdedge.ownership import check_owned, holds_nothing, not_ours
from kdedge.parsing import parse_choices, parse_counts
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.checks import COMPARE_FLAGS
from kdedge.pipeline.data.sources import open_dataset, opened
from kdedge.pipeline.data.user_images import check_outside
from kdedge.pipeline.distill.methods import CONTROL, METHODS
from kdedge.pipeline.run import CONFIG, recorded_runtime, run_stages
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.study.cells import COLUMNS, Cell, Row, Rows, Study, check_cell, measure_test, variant
from kdedge.pipeline.study.finished import (
    begun_elsewhere,
    check_cells_kept,
    check_teacher_kept,
    unfinished,
    with_finished,
)
from kdedge.pipeline.study.page import alarms, notes, render
from kdedge.pipeline.study.summary import summarise
from kdedge.pipeline.study.training import run_cells
from kdedge.pipeline.training.device import check_threads, resolve
from kdedge.progress import warn

__all__ = ["StudyOptions", "check_study", "compare", "resolve_runtime", "run_study"]

_RESULTS = "evaluation_results.csv"
_OTHER_FILES = ("block_variances.csv", "comparison.md", "figures")


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study in addition to the configuration.

    Attributes:
        epochs: Lengths of the cells, comma-separated.
        seeds: Seeds of the cells, comma-separated.
        teacher_dir: Directory of a finished teacher stage (None: the study trains one).
        target_accuracy: Validation accuracy in percent whose first epoch is reported.
        jobs: Number of cells to train in parallel.
        test: Whether to measure the INT8 students on test images at the end.
        command: The command line, for the page.
        force: Whether finished cells of other options or another teacher may be replaced.
    """

    epochs: str
    seeds: str
    teacher_dir: Path | None
    target_accuracy: float
    jobs: int
    test: bool
    command: str
    force: bool

    def grid(self) -> list[tuple[int, int]]:
        """Return (epochs, seed) of every group of compared cells.

        Raises:
            InputError: A list is not one of whole numbers.
        """
        epochs = parse_counts(self.epochs, "--epochs", 100_000)
        return [(length, seed) for length in epochs for seed in parse_counts(self.seeds, "--seeds", 2**31 - 1, least=0)]


def check_study(config: Config, out: Path, options: StudyOptions) -> None:
    """Check a study before it begins; write, create and time nothing.

    Raises:
        InputError: A file or folder in the way is not kdedge's, a list is not one of whole numbers, the data set is bad
            or contains ``out``, or there are too many threads.
    """
    options.grid()
    check_owned(out, ("teacher",))
    known = (out / _RESULTS).is_file() and (out / _RESULTS).read_bytes().startswith(b"method,epochs,seed,")
    # The table is written before the other files.
    for path in () if known else (out / name for name in (_RESULTS, *_OTHER_FILES)):
        if not holds_nothing(path):
            raise not_ours(path, f"there is no {_RESULTS} of a study next to it")
    check_threads(config.runtime.threads, recorded_runtime(out))
    STAGES["distill"].data(config)
    check_outside(opened(config.data), out)


def compare(config: Config, out: Path, methods: str, options: StudyOptions) -> dict[str, Any]:
    """Compare methods; return what `run_study` returns.

    Args:
        config: Options that all cells share.
        out: Directory of the study, locked.
        methods: Names, comma-separated.
        options: Options of the study.

    Raises:
        InputError: An unknown method, or contradicting options.
        StageError: A stage failed.
    """
    names = parse_choices(methods, "--methods", tuple(METHODS))
    config = resolve_runtime(config, out, options.jobs)

    def make(name: str, epochs: int, seed: int) -> Cell:
        return Cell(name, variant(config, {"method": name, "epochs": epochs}, seed, COMPARE_FLAGS))

    return run_study(Study("Comparison of methods", CONTROL, tuple(METHODS), make), names, config, out, options)


def run_study(study: Study, names: Sequence[str], config: Config, out: Path, options: StudyOptions) -> dict[str, Any]:
    """Run cells of a study and write its tables and figures.

    Args:
        study: The kind of study.
        names: Names of the cells of each length and seed.
        config: Options that all cells share, with a resolved runtime.
        out: Directory of the study, locked.
        options: Options of the study.

    Returns:
        ``rows``, ``summary``, ``alarms`` and the path of the ``page``.

    Raises:
        InputError: ``--teacher-dir`` has no teacher, the teacher has no blocks for hints, or finished cells would be
            replaced.
        KdedgeError: A stage failed.
    """
    from kdedge.pipeline.study.figures import draw_study

    cells: Sequence[Cell] = [study.make(name, epochs, seed) for epochs, seed in options.grid() for name in names]
    for cell in cells:
        check_cell(cell.directory(out), test=options.test)
    if options.teacher_dir is None:
        _check_hints(cells, config.teacher.arch)
        if not options.force:
            check_cells_kept(cells, out, None)
            check_teacher_kept(config, out)
        run_stages(("teacher",), config, out)
        teacher_dir = out / "teacher"
        teacher = load_manifest(teacher_dir)
    else:
        teacher_dir = options.teacher_dir.resolve()  # it may be the link of a cell that is trained again
        teacher = _load_teacher_manifest(options.teacher_dir)
        _check_hints(cells, teacher["facts"]["arch"])
    if not options.force:
        check_cells_kept(cells, out, teacher)
    write_json(out / CONFIG, dataclasses.asdict(config))
    cells = with_finished(cells, study, out, teacher)
    missing, begun = unfinished(cells, out, teacher), begun_elsewhere(cells, out)
    data_name = open_dataset(config.data).name
    train_sha256 = STAGES["distill"].data(config)["train"]
    result: dict[str, Any] = {}

    def report(known: Rows) -> None:
        rows = list(known.values())
        summary = summarise(rows, study.control)
        warnings = alarms(summary, study.control)
        # The directory of a diverged cell may have the student of an earlier command.
        students = [
            load_manifest(cell.directory(out) / "distill")["facts"] if row["status"] == "done" else {}
            for cell, row in known.items()
        ]
        remarks = notes(
            known, teacher, total=len(cells), unfinished=begun, command=options.command, data_name=data_name,
            train_sha256=train_sha256,
        )  # fmt: skip
        page = render(study.title, summary, warnings, remarks, target_accuracy=options.target_accuracy)
        write_atomic(out / _RESULTS, _csv(COLUMNS, rows))
        write_atomic(out / "block_variances.csv", _csv(_SCAN_COLUMNS, _scan_rows(rows, students)))
        write_atomic(out / "comparison.md", page.encode())
        result.update(rows=rows, summary=summary, alarms=warnings, page=str(out / "comparison.md"))

    rows = run_cells(
        cells, out, teacher_dir, target_accuracy=options.target_accuracy, missing=missing,
        jobs=options.jobs, report=report,
    )  # fmt: skip
    if options.test:
        measure_test(rows, out, report=report)
    draw_study(out)
    return result


_SCAN_COLUMNS = ("method", "epochs", "seed", "block", "variance", "chosen")


def resolve_runtime(config: Config, out: Path, jobs: int) -> Config:
    """Resolve the runtime once for all cells, as in an earlier attempt; parallel cells share the cores."""
    runtime = resolve(config.runtime, recorded_runtime(out), jobs=jobs)
    if jobs > 1 and runtime.threads * jobs > usable_cores():
        warn(
            f"{jobs} parallel runs with {runtime.threads} threads each (--threads) share {usable_cores()} cores: fewer "
            "--jobs may be faster"
        )
    return dataclasses.replace(config, runtime=runtime)


def _load_teacher_manifest(teacher_dir: Path) -> dict[str, Any]:
    """Read the manifest of a finished teacher stage.

    Raises:
        InputError: It is missing or damaged, its files were altered, or it is of another stage.
    """
    hint = "use a finished teacher, such as artifacts/run/teacher; `kdedge teacher --out artifacts/run` trains one"
    try:
        manifest = load_manifest(teacher_dir)
    except InputError as error:
        raise InputError(f"--teacher-dir: {error}", hint) from error
    if manifest.get("stage") != "teacher":
        raise InputError(f"--teacher-dir {teacher_dir} is the stage {manifest.get('stage')}, not a teacher", hint)
    if damage := output_damage(teacher_dir, manifest):
        raise InputError(f"--teacher-dir {teacher_dir}: {damage} since it was trained", hint)
    return manifest


def _check_hints(cells: Sequence[Cell], arch: str) -> None:
    """Check before training that the teacher has blocks for hints, if a method uses hints.

    Raises:
        InputError: It has none, or the architecture is unknown.
    """
    if not any(METHODS[cell.config.distill.method].blocks for cell in cells):
        return
    from kdedge.pipeline.models.teacher import build_teacher, hint_candidates

    if not hint_candidates(build_teacher(arch, num_classes=2, stem="imagenet")):
        raise InputError(
            f"{arch} has no blocks whose maps hints could use",
            "train without hints: `kdedge compare --methods ce,kd`, `kdedge ablate --method kd`; or use another "
            "--teacher",
        )


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


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()

"""Trains the cells of a study: one after the other here, or several at once, each in a process of its own."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from kdedge.errors import DivergenceError, KdedgeError, StageError
from kdedge.ownership import partial_dir
from kdedge.pipeline.distill.methods import CONTROL
from kdedge.pipeline.run import run_stages
from kdedge.pipeline.run_dir import lock_run
from kdedge.pipeline.study.cells import Cell, Rows, identity, link_stage, row_of
from kdedge.progress import format_duration, log, set_quiet, track, warn

__all__ = ["run_cells"]

_LOOK_S = 2.0  # how often the logs of cells that are trained at once are looked at, for the progress

# A cell that was trained, and its error if it diverged.
Trained = tuple[Cell, DivergenceError | None]


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    teacher_dir: Path,
    *,
    control: str,
    reach: float,
    missing: Sequence[Cell],
    jobs: int,
    report: Callable[[Rows], None],
) -> Rows:
    """Train the cells that are not finished.

    A cell that diverges is recorded as such and the study goes on: its options are at fault, others have others.

    Args:
        cells: In the order of the tables.
        out: Directory of the study, locked.
        teacher_dir: Directory of a finished teacher stage.
        control: Name of the cells that the others of the same epochs and seed are compared with.
        reach: Validation accuracy in percent whose first epoch is reported.
        missing: Those that are yet to be trained, in that order.
        jobs: How many are trained at once.
        report: Called with the rows of the cells so far: at first of those that are finished, so that an interruption
            leaves no table without them, and then after each cell.

    Raises:
        KdedgeError: A stage failed for another reason; cells beside it are stopped, and a later command goes on with
            them.
    """
    rows: Rows = {}
    for cell in cells:
        if cell not in missing:
            directory = cell.directory(out)
            with lock_run(directory):
                link_stage(teacher_dir, directory / "teacher")
                rows[cell] = row_of(cell, directory, reach)
    log(f"{len(rows)} of {len(cells)} cells are finished")
    if rows:
        report(rows)
    if jobs > 1 and missing:
        trained = _at_once(missing, out, teacher_dir, jobs)
    else:
        trained = _one_by_one(missing, out, teacher_dir)
    with closing(trained):
        for cell, divergence in trained:
            if divergence:
                warn(f"{cell}: {divergence}")
                rows[cell] = {**identity(cell), "status": "diverged"}
            else:
                rows[cell] = row_of(cell, cell.directory(out), reach)
                _compare_with_control(rows, cell, control)
            rows = {cell: rows[cell] for cell in cells if cell in rows}
            report(rows)
    return rows


def _compare_with_control(rows: Rows, last: Cell, control: str) -> None:
    """Log how the last cell did, and its gain to its control, loudly if the teacher was of no use.

    If it is a control, the gains of those that were done before it.
    """
    row = rows[last]
    log(f"{last}: {row['val_top1_pct']:.2f} % on validation, {format_duration(row['seconds'])}")
    beside = {
        cell: other["val_top1_pct"]
        for cell, other in rows.items()
        if other["status"] == "done" and (other["epochs"], other["seed"]) == (row["epochs"], row["seed"])
    }
    reference = next((cell for cell in beside if cell.name == control), None)
    if reference is None:
        return
    for cell in beside if last is reference else [last]:
        if cell is reference:
            continue
        gain = beside[cell] - beside[reference]
        alarming = control == CONTROL and gain <= 0
        (warn if alarming else log)(f"{cell}: {gain:+.2f} pp to {control}" + (": not better" if alarming else ""))


def _train(cell: Cell, out: Path, teacher_dir: Path) -> None:
    directory = cell.directory(out)
    with lock_run(directory):
        link_stage(teacher_dir, directory / "teacher")
        run_stages(("distill",), cell.config, directory)


def _one_by_one(cells: Sequence[Cell], out: Path, teacher_dir: Path) -> Generator[Trained, None, None]:
    start, trained = time.monotonic(), 0
    for number, cell in enumerate(cells, 1):
        left_s = (time.monotonic() - start) / trained * _epochs(cells[number - 1 :]) if trained else 0.0
        log(f"cell {number} of {len(cells)}: {cell}" + (f"; {format_duration(left_s)} left" if trained else ""))
        try:
            _train(cell, out, teacher_dir)
        except DivergenceError as error:
            yield cell, error
        else:
            trained += _epochs([cell])
            yield cell, None


@dataclass(frozen=True, eq=False)
class _Job:
    """A process that trains a cell; it sends its error, or None when it is done."""

    cell: Cell
    process: SpawnProcess
    result: Connection


def _at_once(cells: Sequence[Cell], out: Path, teacher_dir: Path, jobs: int) -> Generator[Trained, None, None]:
    waiting, running, finished = list(cells), list[_Job](), list[Cell]()
    before = _epochs_begun(cells, out)
    shown = 0
    try:
        with track(f"epochs of {len(cells)} cells, {jobs} at once", _epochs(cells) - before) as tracker:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(waiting.pop(0), out, teacher_dir))
                ready = wait([job.result for job in running], timeout=_LOOK_S)
                for job in [job for job in running if job.result in ready]:
                    running.remove(job)
                    finished.append(job.cell)
                    yield job.cell, _outcome(job)
                unfinished = [cell for cell in cells if cell not in finished]
                done = max(shown, _epochs(finished) + _epochs_begun(unfinished, out) - before)
                tracker.advance(done - shown)
                shown = done
    finally:
        for job in running:
            job.process.terminate()
            job.process.join()


def _start(cell: Cell, out: Path, teacher_dir: Path) -> _Job:
    # Not forked: neither CUDA nor the threads of PyTorch live on in a copy of the process.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(cell, out, teacher_dir, theirs), daemon=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the study, which ends its processes
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    theirs.close()
    return _Job(cell, process, ours)


def _work(cell: Cell, out: Path, teacher_dir: Path, result: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where processes do not inherit that
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    set_quiet(True)
    try:
        _train(cell, out, teacher_dir)
    except Exception as error:
        if not isinstance(error, KdedgeError):
            error.add_note(f"in the process that trained {cell}:\n{traceback.format_exc()}")
        result.send(error)
    else:
        result.send(None)


def _end_with_the_study() -> None:
    """End this process as soon as the one that began it is gone, however that ended: checkpoints survive this."""
    study = multiprocessing.parent_process()
    if study is not None:
        study.join()
    os._exit(1)


def _outcome(job: _Job) -> DivergenceError | None:
    """Return the divergence of a cell, or None.

    Raises:
        Exception: It failed for another reason.
    """
    try:
        error: Exception | None = job.result.recv()
    except EOFError:
        job.process.join()
        raise StageError(
            f"the process that trained {job.cell} ended with exit code {job.process.exitcode}",
            "run the same command again to resume; fewer --jobs need less memory",
        ) from None
    job.process.join()
    if error is None or isinstance(error, DivergenceError):
        return error
    raise error


def _epochs(cells: Sequence[Cell]) -> int:
    return sum(cell.config.distill.epochs for cell in cells)


def _epochs_begun(cells: Sequence[Cell], out: Path) -> int:
    """Count the epochs in the logs of unfinished cells."""
    epochs = 0
    for cell in cells:
        partial = partial_dir(cell.directory(out), "distill")
        with suppress(OSError):  # not begun, or just finished
            lines = (partial / f"training_log_{cell.config.distill.method}.csv").read_bytes().splitlines()
            epochs += max(0, len(lines) - 1)
    return epochs

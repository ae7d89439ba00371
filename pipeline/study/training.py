"""Trains the cells of a study: one after the other, or several in parallel, each in a process."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from pathlib import Path

from kdedge.errors import DivergenceError, StageError
from kdedge.ownership import partial_dir
from kdedge.pipeline.run import run_stages
from kdedge.pipeline.run_dir import lock_run
from kdedge.pipeline.study.cells import Cell, Rows, identity, link_stage, row_of
from kdedge.progress import format_duration, log, set_quiet, track, warn

__all__ = ["run_cells"]

_POLL_S = 2.0  # interval at which the progress of parallel cells is read from their logs

# A trained cell, and its error if it diverged.
Trained = tuple[Cell, DivergenceError | None]


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    teacher_dir: Path,
    *,
    target_accuracy: float,
    missing: Sequence[Cell],
    jobs: int,
    report: Callable[[Rows], None],
) -> Rows:
    """Train the unfinished cells. A cell that diverges is recorded, and the study continues.

    Args:
        cells: In the order of the tables.
        out: Directory of the study, locked.
        teacher_dir: Directory of a finished teacher stage.
        target_accuracy: Validation accuracy in percent whose first epoch is reported.
        missing: The unfinished cells, in the order of their training.
        jobs: Number of cells to train in parallel.
        report: Called with the rows so far: once with the finished cells, so that an interruption keeps them in the
            tables, and then after each cell.

    Raises:
        KdedgeError: A stage failed for another reason; parallel cells are stopped, and a later command resumes them.
    """
    rows: Rows = {}
    for cell in cells:
        if cell not in missing:
            directory = cell.directory(out)
            with lock_run(directory):
                link_stage(teacher_dir, directory / "teacher")
                rows[cell] = row_of(cell, directory, target_accuracy)
    log(f"{len(rows)} of {len(cells)} cells are finished")
    if rows:
        report(rows)
    parallel = jobs > 1 and missing
    with closing((_in_parallel if parallel else _one_by_one)(missing, out, teacher_dir, jobs)) as trained:
        for cell, divergence in trained:
            if divergence:
                warn(f"{cell}: {divergence}")
                rows[cell] = {**identity(cell), "status": "diverged"}
            else:
                rows[cell] = row = row_of(cell, cell.directory(out), target_accuracy)
                log(f"{cell}: {row['val_top1_pct']:.2f} % on validation, {format_duration(row['seconds'])}")
            rows = {cell: rows[cell] for cell in cells if cell in rows}
            report(rows)
    return rows


def _train(cell: Cell, out: Path, teacher_dir: Path) -> DivergenceError | None:
    """Train a cell; return its error if it diverged."""
    directory = cell.directory(out)
    with lock_run(directory):
        link_stage(teacher_dir, directory / "teacher")
        try:
            run_stages(("distill",), cell.config, directory)
        except DivergenceError as error:
            return error
    return None


def _one_by_one(cells: Sequence[Cell], out: Path, teacher_dir: Path, jobs: int) -> Generator[Trained, None, None]:
    start, trained = time.monotonic(), 0
    for number, cell in enumerate(cells, 1):
        left_s = (time.monotonic() - start) / trained * _epochs(cells[number - 1 :]) if trained else 0.0
        log(f"cell {number} of {len(cells)}: {cell}" + (f"; {format_duration(left_s)} left" if trained else ""))
        divergence = _train(cell, out, teacher_dir)
        trained += 0 if divergence else _epochs([cell])
        yield cell, divergence


def _in_parallel(cells: Sequence[Cell], out: Path, teacher_dir: Path, jobs: int) -> Generator[Trained, None, None]:
    before, finished, shown = _epochs_begun(cells, out), list[Cell](), 0
    context = multiprocessing.get_context("spawn")  # neither CUDA nor PyTorch's threads survive a fork
    with (
        ProcessPoolExecutor(jobs, context, initializer=_begin) as pool,
        track(f"epochs of {len(cells)} cells, {jobs} in parallel", _epochs(cells) - before) as tracker,
    ):
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the study, which ends its processes
        try:
            running = {pool.submit(_train, cell, out, teacher_dir): cell for cell in cells}
        finally:
            signal.signal(signal.SIGINT, handler)
        try:
            while running:
                for future in wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
                    finished.append(running.pop(future))
                    yield finished[-1], future.result()
                done = _epochs(finished) + _epochs_begun(list(running.values()), out) - before
                tracker.advance(max(0, done - shown))
                shown = max(shown, done)
        except BrokenProcessPool:
            raise StageError(
                "a process that trained a cell ended unexpectedly",
                "run the same command again to resume; fewer --jobs need less memory",
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()


def _begin() -> None:
    """Set up a process that trains cells: quiet, and ended with the study, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where processes do not inherit that
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    set_quiet(True)


def _end_with_the_study() -> None:
    study = multiprocessing.parent_process()
    if study is not None:
        study.join()
    os._exit(1)  # checkpoints survive this


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

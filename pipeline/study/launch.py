"""Trains the cells of a study: in this process, in several processes, or as jobs of Slurm.

A cell is a run directory with its options, so `kdedge distill --out CELL` trains it on any host that shares the file
system. The command skips a finished cell, resumes a begun one, and holds the lock of its directory, which ends with the
process. So launchers on several hosts may share a study, and no cell is trained twice.
"""

import logging
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from kdedge.errors import BusyError, DivergenceError, InputError, StageError
from kdedge.ownership import partial_dir
from kdedge.pipeline.run import run_stages
from kdedge.pipeline.run_dir import lock_run
from kdedge.pipeline.study.cells import Cell, Row, prepare_cell
from kdedge.pipeline.study.tables import Tables
from kdedge.progress import format_duration, log, track, warn

__all__ = ["Launcher", "Processes", "Slurm", "ThisProcess", "check_slurm", "command_line", "take", "train_cells"]

_POLL_S = 0.2
_PROGRESS_S = 2.0  # interval at which the progress of cells is read from their logs
_SLURM_FOLDER = "slurm"  # of the study; has the logs of the jobs


class Job(Protocol):
    """The training of a cell, such as a process."""

    def poll(self) -> int | None:
        """Return None while it runs, then a number."""

    def terminate(self) -> None:
        """End it; its checkpoint stays."""


class Launcher(Protocol):
    """Where cells are trained, at most ``most`` at the same time."""

    most: int

    def start(self, cells: Sequence[Cell]) -> Sequence[Job]:
        """Start the training of cells whose directories are prepared."""


def command_line(cell: Cell, out: Path) -> str:
    """Return the command that trains a cell whose directory is prepared."""
    return shlex.join(["kdedge", *_arguments(cell, out)])


def train_cells(cells: Sequence[Cell], tables: Tables, launcher: Launcher) -> None:
    """Train cells until each has ended, here or elsewhere; update the tables after each.

    Args:
        cells: Unfinished cells, in the order of their training.
        tables: Of the study.
        launcher: Where to train them.

    Raises:
        StageError: Cells ended twice without a result; all others have ended.
        KdedgeError: A stage failed in this process.
    """
    waiting, running = list(cells), dict[Job, Cell]()
    lost, failed, told = set[Cell](), list[Cell](), False
    with _progress(cells, tables.out, launcher) as show, _terminated_as_interrupted():
        try:
            while waiting or running:
                ready, over = take(waiting, launcher.most - len(running), tables)
                if ready:
                    running |= dict(zip(launcher.start(ready), ready, strict=True))
                for job in [job for job in running if job.poll() is not None]:
                    cell = running.pop(job)
                    if tables.ended(cell):
                        over.append(cell)
                        continue
                    (failed if cell in lost else waiting).append(cell)
                    warn(f"{cell}: its training ended without a result{'' if cell in lost else ' and starts again'}")
                    lost.add(cell)
                if over:
                    tables.update()
                    _log_results([tables.rows[cell] for cell in over if cell in tables.rows])
                show([*waiting, *running.values()])
                if waiting and not (ready or running or told):
                    log(f"waiting for cells that other processes use: {len(waiting)}")
                    told = True
                if running or (waiting and not ready):
                    time.sleep(_POLL_S)
        finally:
            for job in running:
                job.terminate()
    if failed:
        raise StageError(
            f"{len(failed)} of {len(cells)} cells ended twice without a result, such as {failed[0]}",
            "the reason is above, or in the logs of the jobs; run the same command again to resume; fewer --jobs need "
            "less memory",
        )


def _log_results(rows: Sequence[Row]) -> None:
    for row in rows:
        if row["status"] == "done":
            pct, time_s = row["val_top1_pct"], format_duration(row["seconds"])
            log(f"{row['method']}, {row['epochs']} epochs, seed {row['seed']}: {pct:.2f} % on validation, {time_s}")


def take(waiting: list[Cell], most: int, tables: Tables) -> tuple[list[Cell], list[Cell]]:
    """Take cells that no process uses from ``waiting``: at most ``most`` to train, now prepared, and ended ones."""
    ready, over = list[Cell](), list[Cell]()
    for cell in list(waiting):
        if len(ready) == most:
            break
        with suppress(BusyError), lock_run(cell.directory(tables.out)):
            (over if tables.ended(cell) else ready).append(cell)
            waiting.remove(cell)
            if cell in ready:
                prepare_cell(cell, tables.out, tables.teacher_dir)
    return ready, over


class ThisProcess:
    """Trains one cell after the other in this process."""

    most = 1

    def __init__(self, out: Path, cells: Sequence[Cell]) -> None:
        self._out, self._cells = out, cells
        self._start, self._trained = time.monotonic(), list[Cell]()

    def start(self, cells: Sequence[Cell]) -> Sequence[Job]:
        """Train a cell, and return its ended job."""
        (cell,), left = cells, ""
        number, directory = self._cells.index(cell), cell.directory(self._out)
        if self._trained:
            s_per_epoch = (time.monotonic() - self._start) / _epochs(self._trained)
            left = f"; {format_duration(s_per_epoch * _epochs(self._cells[number:]))} left"
        log(f"cell {number + 1} of {len(self._cells)}: {cell}{left}")
        self._trained.append(cell)
        with lock_run(directory, wait=True), suppress(DivergenceError):
            run_stages(("distill",), cell.config, directory)
        return [_Ended()]


class _Ended:
    def poll(self) -> int | None:
        return 0

    def terminate(self) -> None:
        pass


class Processes:
    """Trains cells in processes of this host."""

    def __init__(self, out: Path, jobs: int) -> None:
        self._out, self.most = out, jobs

    def start(self, cells: Sequence[Cell]) -> Sequence[Job]:
        """Start a process per cell. Ctrl-C reaches only the launcher, which ends them."""
        null = subprocess.DEVNULL
        return [
            subprocess.Popen(_process(cell, self._out), stdin=null, stdout=null, start_new_session=True)
            for cell in cells
        ]


def check_slurm() -> None:
    """Check that this host can submit jobs.

    Raises:
        InputError: It has no Slurm.
        ModuleNotFoundError: submitit is not installed.
    """
    import_module("submitit")
    if not shutil.which("sbatch"):
        raise InputError(
            "--launcher slurm: this host has no sbatch", "start it on a login node, or use another --launcher"
        )


class Slurm:
    """Trains cells as an array of jobs that submitit submits.

    Args:
        out: Directory of the study, on a file system that the nodes share.
        most: Number of jobs that Slurm runs at the same time.
        threads: CPUs of a job.
        options: Further options of ``sbatch``, by their long names.
    """

    most = sys.maxsize

    def __init__(self, out: Path, most: int, threads: int, options: Mapping[str, str]) -> None:
        import submitit

        del logging.getLogger("submitit").handlers[1:]  # the second repeats warnings on stdout
        self._out = out
        self._executor: Any = submitit.SlurmExecutor(out / _SLURM_FOLDER)
        # Without a limit of time from here: the partition has one. `srun` would take one CPU of the job.
        self._executor.update_parameters(
            job_name=out.resolve().name, time=None, cpus_per_task=threads, array_parallelism=most, use_srun=False,
            additional_parameters={key.replace("-", "_"): value for key, value in options.items()},
        )  # fmt: skip

    def start(self, cells: Sequence[Cell]) -> Sequence[Job]:
        """Submit the jobs.

        Raises:
            InputError: Slurm refuses them.
        """
        try:
            jobs = self._executor.map_array(subprocess.call, [_process(cell, self._out) for cell in cells])
        except RuntimeError as error:
            raise InputError(f"sbatch: {str(error).strip().splitlines()[-1]}", "check the options --slurm") from error
        log(f"{len(jobs)} jobs of Slurm, such as {jobs[0].job_id}; logs: {self._out / _SLURM_FOLDER}")
        return [_SlurmJob(job) for job in jobs]


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        return 0 if self._job.done() else None

    def terminate(self) -> None:
        self._job.cancel(check=False)


def _arguments(cell: Cell, out: Path) -> list[str]:
    return ["distill", "--out", str(cell.directory(out))]


def _process(cell: Cell, out: Path) -> list[str]:
    return [sys.executable, "-m", "kdedge", *_arguments(cell, out), "--quiet"]


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """End as after Ctrl-C when the process is terminated."""
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _progress(cells: Sequence[Cell], out: Path, launcher: Launcher) -> Iterator[Callable[[Iterable[Cell]], None]]:
    """Show the progress of parallel training; the function is called with the cells that have not ended."""
    if launcher.most == 1:  # its training shows its own
        yield lambda unfinished: None
        return
    total, shown, due_s = _epochs_left(cells, out), 0, 0.0
    with track(f"epochs of {len(cells)} cells", total) as tracker:

        def show(unfinished: Iterable[Cell]) -> None:
            nonlocal shown, due_s
            if time.monotonic() >= due_s:
                done = total - _epochs_left(unfinished, out)
                tracker.advance(max(0, done - shown))
                shown, due_s = max(shown, done), time.monotonic() + _PROGRESS_S

        yield show


def _epochs(cells: Iterable[Cell]) -> int:
    return sum(cell.config.distill.epochs for cell in cells)


def _epochs_left(cells: Iterable[Cell], out: Path) -> int:
    """Count the epochs that are not in the logs of unfinished cells."""
    left = 0
    for cell in cells:
        left += cell.config.distill.epochs
        log_file = partial_dir(cell.directory(out), "distill") / f"training_log_{cell.config.distill.method}.csv"
        with suppress(OSError):  # not begun, or just finished
            left -= max(0, len(log_file.read_bytes().splitlines()) - 1)
    return left

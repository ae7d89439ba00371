"""The comparison of methods: methods x epochs x seeds, all with one teacher and one recipe.

    kdedge compare --methods ce,kd,selective --epochs 20,40 --seeds 0,1,2 --out artifacts/compare

`kdedge.pipeline.study.tables` writes the tables after every cell; figures follow at the end. A later command with other
methods, lengths or seeds in the same directory adds to the tables of finished cells with the same teacher and the same
other options. Results are of validation images; only ``--test`` reads test images, at the end.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.files import write_json
from kdedge.machine import cpu_isa, usable_cores
from kdedge.manifest import load_manifest, output_damage
from kdedge.ownership import check_owned, holds_nothing, not_ours
from kdedge.parsing import parse_choices, parse_counts
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.checks import COMPARE_FLAGS
from kdedge.pipeline.data.sources import check_outside, opened
from kdedge.pipeline.distill.methods import CONTROL, METHODS
from kdedge.pipeline.run import CONFIG, recorded_runtime, run_stages
from kdedge.pipeline.run_dir import lock_run
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.study.cells import Cell, Study, check_cell, measure_test, variant
from kdedge.pipeline.study.finished import check_cells_kept, check_teacher_kept
from kdedge.pipeline.study.launch import (
    Launcher,
    Processes,
    Slurm,
    ThisProcess,
    check_slurm,
    command_line,
    take,
    train_cells,
)
from kdedge.pipeline.study.tables import OTHER_FILES, RESULTS, Tables
from kdedge.pipeline.training.device import check_threads, resolve
from kdedge.pipeline.training.options import RuntimeConfig
from kdedge.progress import log, warn

__all__ = ["LAUNCHERS", "StudyOptions", "check_study", "compare", "run_study"]

LAUNCHERS = ("local", "slurm", "print")


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study in addition to the configuration.

    Attributes:
        epochs: Lengths of the cells, comma-separated.
        seeds: Seeds of the cells, comma-separated.
        teacher_dir: Directory of a finished teacher stage (None: the study trains one).
        target_accuracy: Validation accuracy in percent whose first epoch is reported.
        jobs: Number of cells to train in parallel; 1 for Slurm: all.
        launcher: Where to train the cells, one of `LAUNCHERS`.
        shard: ``K/N``: train only the K-th of N parts.
        slurm: Options of ``sbatch`` as ``KEY=VALUE``.
        test: Whether to measure the INT8 students on test images at the end.
        command: The command line, for the page.
        force: Whether finished cells of other options or another teacher may be replaced.
    """

    epochs: str
    seeds: str
    teacher_dir: Path | None
    target_accuracy: float
    jobs: int
    launcher: str
    shard: str
    slurm: Sequence[str]
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

    def part(self) -> tuple[int, int]:
        """Return K and N of the shard.

        Raises:
            InputError: It is not ``K/N``.
        """
        part, slash, parts = self.shard.partition("/")
        if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise InputError(f"--shard {self.shard!r} is not K/N with K from 1 to N", "for example --shard 2/8")
        return int(part), int(parts)

    def sbatch(self) -> dict[str, str]:
        """Return the options of ``sbatch``.

        Raises:
            InputError: One is not ``KEY=VALUE``.
        """
        for option in self.slurm:
            if not all(option.partition("=")):
                raise InputError(f"--slurm {option!r} is not KEY=VALUE", "for example --slurm partition=gpu")
        return {key: value for key, _, value in (option.partition("=") for option in self.slurm)}

    def check(self) -> None:
        """Check the options.

        Raises:
            InputError: One is wrong, or two contradict each other.
        """
        self.grid(), self.part(), self.sbatch()
        parse_choices(self.launcher, "--launcher", LAUNCHERS)
        if self.slurm and self.launcher != "slurm":
            raise InputError("--slurm has no effect without --launcher slurm", "leave it out")
        if self.test and (self.launcher == "print" or self.shard != "1/1"):
            raise InputError(
                "--test measures every student after all training, and this command trains a part or nothing",
                "leave it out, and run the command again with --test and without --shard and --launcher at the end",
            )
        if self.launcher == "slurm":
            check_slurm()


def check_study(config: Config, out: Path, options: StudyOptions) -> None:
    """Check a study before it begins; write, create and time nothing.

    Raises:
        InputError: An option of the study is wrong, a file or folder in the way is not kdedge's, the data set is bad or
            contains ``out``, weights or a further teacher of the students are missing or do not fit, or there are too
            many threads.
    """
    options.check()
    check_owned(out, ("teacher",))
    known = (out / RESULTS).is_file() and (out / RESULTS).read_bytes().startswith(b"method,epochs,seed,")
    # The table is written before the other files.
    for path in () if known else (out / name for name in (RESULTS, *OTHER_FILES)):
        if not holds_nothing(path):
            raise not_ours(path, f"there is no {RESULTS} of a study next to it")
    check_threads(config.runtime.threads, recorded_runtime(out))
    distill = STAGES["distill"]
    if distill.check:
        distill.check(config, out)
    distill.data(config)
    check_outside(opened(config.data), out)
    if distill.check_data:
        distill.check_data(config, out, ())


def compare(config: Config, out: Path, methods: str, options: StudyOptions) -> dict[str, Any]:
    """Compare methods; return what `run_study` returns.

    Args:
        config: Options that all cells share.
        out: Directory of the study.
        methods: Names, comma-separated.
        options: Options of the study.

    Raises:
        InputError: An unknown method, or contradicting options.
        StageError: A stage failed.
    """
    names = parse_choices(methods, "--methods", tuple(METHODS))

    def make(config: Config, name: str, epochs: int, seed: int) -> Cell:
        return Cell(name, variant(config, {"method": name, "epochs": epochs}, seed, COMPARE_FLAGS))

    return run_study(Study("Comparison of methods", CONTROL, tuple(METHODS), make), names, config, out, options)


def run_study(study: Study, names: Sequence[str], config: Config, out: Path, options: StudyOptions) -> dict[str, Any]:
    """Run cells of a study and write its tables and figures.

    The directory is locked for the teacher and for each writing of the tables only, so that commands on several hosts
    can train cells of the study at the same time.

    Args:
        study: The kind of study.
        names: Names of the cells of each length and seed.
        config: Options that all cells share.
        out: Directory of the study.
        options: Options of the study.

    Returns:
        ``rows``, ``summary``, ``alarms`` and the path of the ``page``; for the launcher ``print``: ``commands``.

    Raises:
        InputError: A check of `check_study` fails, ``--teacher-dir`` has no teacher, the teacher has no blocks for
            hints, or finished cells would be replaced.
        KdedgeError: A stage failed.
    """
    from kdedge.pipeline.study.figures import draw_study

    with lock_run(out, lambda: check_study(config, out, options), wait=True):
        config = dataclasses.replace(config, runtime=_resolve_runtime(config.runtime, out, options))
        names = sorted(names, key=study.names.index)  # the control first: others are compared with it when they end
        cells = [study.make(config, name, epochs, seed) for epochs, seed in sorted(options.grid()) for name in names]
        for cell in cells:
            check_cell(cell.directory(out), test=options.test)
        teacher_dir, teacher = _teacher(cells, config, out, options)
        if not options.force:
            check_cells_kept(cells, out, teacher)
        write_json(out / CONFIG, dataclasses.asdict(config))
    tables = Tables(study, cells, config, out, teacher_dir, teacher, options.target_accuracy, options.command)
    tables.update()
    finished = [row for row in tables.rows.values() if row["status"] == "done"]
    log(f"{len(finished)} of {len({*cells, *tables.rows})} cells are finished")
    part, parts = options.part()
    missing = [cell for cell in cells[part - 1 :: parts] if not tables.ended(cell)]
    if options.launcher == "print":
        ready, _ = take(missing, len(missing), tables)
        return {"commands": [command_line(cell, out) for cell in ready]}
    launcher: Launcher = ThisProcess(out, missing)
    if options.launcher == "slurm":
        most = options.jobs if options.jobs > 1 else len(missing)
        launcher = Slurm(out, most, config.runtime.threads, options.sbatch())
    elif options.jobs > 1:
        launcher = Processes(out, options.jobs)
    train_cells(missing, tables, launcher)
    if options.test:
        measure_test(tables.rows, out, report=tables.update)
    tables.update()
    if tables.rows:  # the shard may be empty
        with lock_run(out, wait=True):
            draw_study(out)
    return tables.result


def _resolve_runtime(wanted: RuntimeConfig, out: Path, options: StudyOptions) -> RuntimeConfig:
    """Resolve the runtime once for all cells, as in an earlier attempt; parallel cells of a host share its cores."""
    jobs = options.jobs if options.launcher == "local" else 1
    recorded = recorded_runtime(out)
    if recorded and recorded["device"] == "cpu":
        recorded = {**recorded, "isa": cpu_isa()}  # cells may have been trained on another host
    if options.launcher != "local" and wanted.precision != "auto":
        wanted = dataclasses.replace(wanted, isa=cpu_isa())  # the GPU may be in another host
    runtime = resolve(wanted, recorded, jobs=jobs)
    if jobs > 1 and runtime.threads * jobs > usable_cores():
        warn(
            f"{jobs} parallel runs with {runtime.threads} threads each (--threads) share {usable_cores()} cores: fewer "
            "--jobs may be faster"
        )
    return runtime


def _teacher(cells: Sequence[Cell], config: Config, out: Path, options: StudyOptions) -> tuple[Path, dict[str, Any]]:
    """Return the directory and the manifest of the teacher; train it if none is given."""
    if options.teacher_dir is not None:
        # It may be the link of a cell that is trained again.
        teacher_dir, teacher = options.teacher_dir.resolve(), _load_teacher_manifest(options.teacher_dir)
        _check_hints(cells, teacher["facts"]["arch"])
        return teacher_dir, teacher
    _check_hints(cells, config.teacher.arch)
    if not options.force:
        check_cells_kept(cells, out, None)
        check_teacher_kept(config, out)
    taught = next((cell.config for cell in cells if METHODS[cell.config.distill.method].kd), config)
    run_stages(("teacher",), dataclasses.replace(config, distill=taught.distill), out)
    return out / "teacher", load_manifest(out / "teacher")


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
    from kdedge.pipeline.models.teacher import build_teacher, check_arch, hint_candidates, is_student

    if is_student(arch):  # whose blocks are all candidates
        check_arch(arch)
    elif not hint_candidates(build_teacher(arch, num_classes=2, stem="imagenet")):
        raise InputError(
            f"{arch} has no blocks whose maps hints could use",
            "train without hints: `kdedge compare --methods ce,kd`, `kdedge ablate --method kd`; or use another "
            "--teacher",
        )

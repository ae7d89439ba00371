"""The cells of a study: each a run directory with a distilled student, all with the same teacher.

The directory of a cell is ``STUDY/e<epochs>/seed<seed>/<name>/``. Its ``teacher`` is a link to the shared teacher, so a
cell is a run directory: `kdedge distill --out CELL` trains it on any host that shares the file system, skips it when it
is up to date and resumes it after an interruption. `kdedge export --out CELL` continues it. ``CELL/test/`` has the
results on test images.
"""

import dataclasses
import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.files import load_json
from kdedge.manifest import load_manifest
from kdedge.ownership import check_owned, is_stage
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.checks import Flags
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.exchange import discard
from kdedge.pipeline.run import record_config, recorded_config, run_stages
from kdedge.pipeline.run_dir import lock_run, why_rerun
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.training.log import TrainingLog, read_log
from kdedge.progress import log

__all__ = [
    "COLUMNS",
    "Cell",
    "Row",
    "Rows",
    "Study",
    "check_cell",
    "count_halvings",
    "identity",
    "link_stage",
    "measure_test",
    "prepare_cell",
    "row_of",
    "variant",
]

Row = dict[str, Any]

# Of evaluation_results.csv. Test columns are empty for a cell that was not measured on test images, the other results
# for a cell that diverged.
COLUMNS = (
    "method", "epochs", "seed", "status", "val_top1_pct", "val_ce", "teacher_gap_pp", "params", "trained_params",
    "hint_map_bytes", "scan_s", "seconds", "median_epoch_s", "drowned_epochs", "beta_halvings", "reach_epochs",
    "fp32_test_top1_pct", "int8_test_top1_pct", "train_size", "recipe", "precision", "threads", "commit", "hardware",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: Method or variation; the last part of the directory.
        config: Configuration with a resolved runtime.
    """

    name: str
    config: Config

    def directory(self, out: Path) -> Path:
        """Return the run directory in a study."""
        return out / f"e{self.config.distill.epochs}" / f"seed{self.config.runtime.seed}" / self.name

    def __str__(self) -> str:
        return f"{self.name}, {self.config.distill.epochs} epochs, seed {self.config.runtime.seed}"


Rows = dict[Cell, Row]


@dataclass(frozen=True)
class Study:
    """A kind of study.

    Attributes:
        title: Heading of its page.
        control: Name of the cells that the others of the same epochs and seed are compared with.
        names: Possible names of cells, in the order of the tables.
        make: Returns the cell of the shared options, a name, a number of epochs and a seed; raises InputError for
            contradicting options.
    """

    title: str
    control: str
    names: Sequence[str]
    make: Callable[[Config, str, int, int], Cell]


def variant(config: Config, distill: dict[str, Any], seed: int, flags: Flags) -> Config:
    """Return a checked configuration with other distillation options and another seed.

    Raises:
        InputError: The options contradict each other.
    """
    return build_config(dataclasses.asdict(config), {"distill": distill, "runtime": {"seed": seed}}, flags=flags)


def check_cell(directory: Path, *, test: bool) -> None:
    """Check that what a cell uses in its directory is kdedge's or absent; ``test`` as in `StudyOptions`.

    Raises:
        InputError: A file or folder is not kdedge's.
    """
    recorded_config(directory)
    check_owned(directory, ("distill", *_linked(directory)))
    if test:
        recorded_config(directory / _TEST)
        check_owned(directory / _TEST, (*_TEST_STAGES, *_linked(directory / _TEST)))


def prepare_cell(cell: Cell, out: Path, teacher_dir: Path) -> None:
    """Write what `kdedge distill` needs to train a cell into its locked directory."""
    link_stage(teacher_dir, cell.directory(out) / "teacher")
    record_config(cell.config, cell.directory(out), "distill")


def measure_test(rows: Rows, out: Path, *, report: Callable[[], None]) -> None:
    """Export, quantize and measure every student on the test images, after all training.

    Args:
        rows: Rows of the tables; the accuracies are added to them.
        out: Directory of the study.
        report: Called after each measured cell.

    Raises:
        KdedgeError: A stage failed.
    """
    for number, (cell, row) in enumerate(rows.items(), 1):
        if row["status"] != "done":
            continue
        log(f"test, cell {number} of {len(rows)}: {cell}")
        directory = cell.directory(out)
        with lock_run(directory, wait=True):
            measured = _test_run(directory)
            run_stages(_TEST_STAGES, _test_config(cell), measured)
        row.update(_test_accuracies(measured))
        report()


_TEST = "test"  # in a cell; its short benchmark must not replace results of the user
_TEST_STAGES = ("export", "quantize", "benchmark")


def _test_config(cell: Cell) -> Config:
    """Return the configuration of the stages after training, with a short latency measurement."""
    return dataclasses.replace(
        cell.config,
        quantize=dataclasses.replace(cell.config.quantize, compare_formats=False),
        benchmark=dataclasses.replace(cell.config.benchmark, seconds=0.05, batches="1", threads="1"),
    )


def _test_run(directory: Path) -> Path:
    """Return the run directory for test results in a cell, with links to its teacher and student."""
    for stage in ("teacher", "distill"):
        link_stage(directory / stage, directory / _TEST / stage)
    return directory / _TEST


def _test_accuracies(directory: Path) -> Row:
    accuracy = load_json(directory / "benchmark" / "report.json", ("accuracy",))["accuracy"]
    return {
        "fp32_test_top1_pct": accuracy["onnx_fp32_top1_pct"],
        "int8_test_top1_pct": accuracy["onnx_int8_top1_pct"],
    }


def _known_test(cell: Cell, directory: Path) -> Row:
    """Return the test accuracies from an earlier command of the same student, or an empty row."""
    if not (directory / _TEST / "benchmark").exists():
        return {}  # without hashing the test images
    measured = _test_run(directory)
    try:
        for name in _TEST_STAGES:
            # Host and measuring time do not change an accuracy.
            reason = why_rerun(STAGES[name], _test_config(cell), measured, any_config=name == "benchmark")
            if reason:
                log(f"{cell}: test results are left out: {name}: {reason}")
                return {}
        return _test_accuracies(measured)
    except InputError as error:
        log(f"{cell}: test results are left out: {error}")
        return {}


def identity(cell: Cell) -> Row:
    """Return the columns that name a cell."""
    return {"method": cell.name, "epochs": cell.config.distill.epochs, "seed": cell.config.runtime.seed}


def row_of(cell: Cell, directory: Path, target_accuracy: float) -> Row:
    """Return the row of a finished cell; ``reach_epochs`` is its first epoch with the target accuracy in percent."""
    manifest = load_manifest(directory / "distill")
    metrics, method, runtime = manifest["facts"], cell.config.distill.method, manifest["config"]["runtime"]
    # Cells of an earlier version have the teacher's accuracy only on its own validation images.
    teacher_pct = metrics.get("teacher_val_top1_pct") or load_manifest(directory / "teacher")["facts"]["val_top1_pct"]
    epochs = read_log(directory / "distill" / f"training_log_{method}.csv")
    reached = [row["epoch"] for row in epochs if (row["val_top1_pct"] or 0.0) >= target_accuracy]
    return {
        **identity(cell),
        "status": "done",
        "val_top1_pct": metrics["val_top1_pct"],
        "val_ce": round(metrics["val_ce"], 6),
        "teacher_gap_pp": round(teacher_pct - metrics["val_top1_pct"], 4),
        "params": metrics["params"],
        "trained_params": metrics["params"] + metrics["adapter_params"],
        "hint_map_bytes": metrics["hint_map_bytes"],
        "scan_s": metrics["scan_s"] if METHODS[method].scans else 0.0,
        "seconds": manifest["wall_s"],
        "median_epoch_s": statistics.median(row["seconds"] or 0.0 for row in epochs),
        "drowned_epochs": metrics["drowned_epochs"],
        "beta_halvings": count_halvings(epochs) if METHODS[method].adaptive_beta else None,
        "reach_epochs": int(reached[0]) if reached and reached[0] else None,
        **_known_test(cell, directory),
        "train_size": metrics["train_images"],
        "recipe": manifest["config"]["distill"]["recipe"],
        "precision": runtime["precision"],
        "threads": runtime["threads"],
        "commit": manifest["commit"],
        "hardware": metrics["hardware"],
    }


def count_halvings(epochs: TrainingLog) -> int:
    """Count the epochs with a lower beta than the epoch before, except 0."""
    betas = [row["beta"] for row in epochs]
    return sum(before is not None and beta is not None and 0 < beta < before for before, beta in pairwise(betas))


def _linked(run_dir: Path) -> list[str]:
    """Return the stages that may be links, except links to a stage that was moved; these are made again."""
    paths = run_dir / "teacher", run_dir / "distill"
    return [path.name for path in paths if path.exists() or not path.is_symlink()]


def link_stage(stage_dir: Path, link: Path) -> None:
    """Make ``link`` point to a finished stage, or copy it where the system has no links."""
    if link.resolve() == stage_dir.resolve():
        return
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        check_owned(link.parent, (link.name,))
    if link.is_symlink():  # to another teacher, or to one that was moved
        link.unlink()
    elif is_stage(link, link.name):
        discard(link, stage_dir)
    elif link.exists():
        link.rmdir()
    try:
        link.symlink_to(os.path.relpath(stage_dir.resolve(), link.parent.resolve()), target_is_directory=True)
    except OSError:
        shutil.copytree(stage_dir, link)

"""The cells of a study: each a run directory with a distilled student, all with the same teacher.

A cell lies in ``STUDY/e<epochs>/seed<seed>/<name>/``. Its ``teacher`` is a link to the one that the study shares, so
it is a run directory like any other: it is left alone when it is up to date, resumed when it was interrupted, and
`kdedge export --out CELL` goes on with it. What is measured on test images lies apart, in ``test/`` in the cell.
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
from kdedge.ownership import MANIFEST, check_owned, remove_marked
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.checks import Flags
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.run import run_stages
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
    "count_halvings",
    "identity",
    "link_stage",
    "measure_test",
    "row_of",
    "variant",
]

Row = dict[str, Any]

# Of evaluation_results.csv. The test columns are empty of a cell that was not measured on test images, the others of
# one that diverged.
COLUMNS = (
    "method", "epochs", "seed", "status", "val_top1_pct", "val_ce", "teacher_gap_pp", "params", "trained_params",
    "hint_map_bytes", "scan_s", "seconds", "median_epoch_s", "drowned_epochs", "beta_halvings", "reach_epochs",
    "fp32_test_top1_pct", "int8_test_top1_pct", "train_size", "recipe", "precision", "threads", "commit", "hardware",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: Method or variation; the last part of its directory.
        config: Its whole configuration, runtime resolved.
    """

    name: str
    config: Config

    def directory(self, out: Path) -> Path:
        """Return its run directory in a study."""
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
        names: Of all cells that it may have, in the order of the tables.
        make: Returns the cell of a name, a number of epochs and a seed; raises InputError if its options contradict
            each other.
    """

    title: str
    control: str
    names: Sequence[str]
    make: Callable[[str, int, int], Cell]


def variant(config: Config, distill: dict[str, Any], seed: int, flags: Flags) -> Config:
    """Return a configuration with other distillation options and another seed, checked as the command line's is.

    Raises:
        InputError: The options contradict each other.
    """
    return build_config(dataclasses.asdict(config), {"distill": distill, "runtime": {"seed": seed}}, flags=flags)


def measure_test(rows: Rows, out: Path, *, report: Callable[[Rows], None]) -> None:
    """Export and quantize the student of every cell and add its accuracy on the test images to its row.

    To be called when everything was chosen.

    Args:
        rows: From `kdedge.pipeline.study.training.run_cells`, which are added to.
        out: Directory of the study, locked.
        report: Called with the rows after each cell that was measured.

    Raises:
        KdedgeError: A stage failed.
    """
    for number, (cell, row) in enumerate(rows.items(), 1):
        if row["status"] != "done":
            continue
        log(f"test images, cell {number} of {len(rows)}: {cell}")
        directory = cell.directory(out)
        with lock_run(directory):
            measured = _test_run(directory)
            run_stages(_TEST_STAGES, _test_config(cell), measured)
        row.update(_test_accuracies(measured))
        report(rows)


_TEST = "test"  # what was exported and measured in a hurry must not replace what the user made of a cell
_TEST_STAGES = ("export", "quantize", "benchmark")


def _test_config(cell: Cell) -> Config:
    """Return the configuration of the stages after training: a study is not about latency, so that is cut short."""
    return dataclasses.replace(
        cell.config,
        quantize=dataclasses.replace(cell.config.quantize, compare_formats=False),
        benchmark=dataclasses.replace(cell.config.benchmark, seconds=0.05, batches="1", threads="1"),
    )


def _test_run(directory: Path) -> Path:
    """Return the run directory in a cell for what is measured on test images, with the cell's teacher and student."""
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
    """Return the test accuracies that an earlier command measured, if they are of the student that lies there now."""
    if not (directory / _TEST / "benchmark").exists():
        return {}  # the test images are not even hashed
    measured = _test_run(directory)
    try:
        for name in _TEST_STAGES:
            # Neither host nor measuring time change an accuracy: of the benchmark, models and images alone count.
            reason = why_rerun(STAGES[name], _test_config(cell), measured, any_config=name == "benchmark")
            if reason:
                log(f"{cell}: what was measured on test images is left out: {name}: {reason}")
                return {}
        return _test_accuracies(measured)
    except InputError as error:
        log(f"{cell}: what was measured on test images is left out: {error}")
        return {}


def identity(cell: Cell) -> Row:
    """Return the columns that name a cell."""
    return {"method": cell.name, "epochs": cell.config.distill.epochs, "seed": cell.config.runtime.seed}


def row_of(cell: Cell, directory: Path, reach: float) -> Row:
    """Return the row of a finished cell; ``reach`` is the accuracy in percent whose first epoch is told."""
    manifest = load_manifest(directory / "distill")
    facts, method, runtime = manifest["facts"], cell.config.distill.method, manifest["config"]["runtime"]
    # Cells of an earlier version know the teacher's accuracy on its own validation images alone.
    teacher_pct = facts.get("teacher_val_top1_pct") or load_manifest(directory / "teacher")["facts"]["val_top1_pct"]
    epochs = read_log(directory / "distill" / f"training_log_{method}.csv")
    reached = [row["epoch"] for row in epochs if (row["val_top1_pct"] or 0.0) >= reach]
    return {
        **identity(cell),
        "status": "done",
        "val_top1_pct": facts["val_top1_pct"],
        "val_ce": round(facts["val_ce"], 6),
        "teacher_gap_pp": round(teacher_pct - facts["val_top1_pct"], 4),
        "params": facts["params"],
        "trained_params": facts["params"] + facts["adapter_params"],
        "hint_map_bytes": facts["hint_map_bytes"],
        "scan_s": facts["scan_s"] if METHODS[method].scans else 0.0,
        "seconds": manifest["wall_s"],
        "median_epoch_s": statistics.median(row["seconds"] or 0.0 for row in epochs),
        "drowned_epochs": facts["drowned_epochs"],
        "beta_halvings": count_halvings(epochs) if METHODS[method].adaptive_beta else None,
        "reach_epochs": int(reached[0]) if reached and reached[0] else None,
        **_known_test(cell, directory),
        "train_size": facts["train_images"],
        "recipe": manifest["config"]["distill"]["recipe"],
        "precision": runtime["precision"],
        "threads": runtime["threads"],
        "commit": manifest["commit"],
        "hardware": facts["hardware"],
    }


def count_halvings(epochs: TrainingLog) -> int:
    """Count the epochs that were trained with a lower beta than the one before; its end at 0 is no halving."""
    betas = [row["beta"] for row in epochs]
    return sum(before is not None and beta is not None and 0 < beta < before for before, beta in pairwise(betas))


def link_stage(stage_dir: Path, link: Path) -> None:
    """Make ``link`` point to a finished stage; where the system has no links for us, copy it."""
    if link.resolve() == stage_dir.resolve():
        return
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        check_owned(link.parent, (link.name,))
        remove_marked(link, MANIFEST)
    elif link.is_symlink():  # the teacher of the study was moved
        link.unlink()
    try:
        link.symlink_to(os.path.relpath(stage_dir.resolve(), link.parent.resolve()), target_is_directory=True)
    except OSError:
        shutil.copytree(stage_dir, link)

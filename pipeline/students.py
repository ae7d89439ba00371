"""Several students of one teacher: ``kdedge run-all --student lite,lite-s,lite-xs``.

Each student has a run directory ``RUN/students/NAME``, whose ``teacher`` is a link to ``RUN/teacher``. The chosen
student is the cheapest whose INT8 validation accuracy, by the metric of the gate, is within a tolerance of the best.
``RUN`` has links to its stages, so it is the run directory of the chosen student. ``students.csv``, ``students.json``
and ``students.html`` compare the students.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdedge.benchmarks.report.compare import tabulate
from kdedge.benchmarks.report.figures import draw_comparison
from kdedge.benchmarks.report.file import load_report
from kdedge.benchmarks.stability import stability_word
from kdedge.errors import GateError, InputError, StageError
from kdedge.files import load_json, write_json
from kdedge.manifest import load_manifest
from kdedge.ownership import MANIFEST, check_owned, holds_nothing, is_stage, not_ours, remove_marked
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.summary import short_summary
from kdedge.pipeline.run import CONFIG, check_stages, record_config, recorded_config, recorded_runtime, run_stages
from kdedge.pipeline.run_dir import lock_run
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.students_page import CSV, FIGURE, HTML, JSON, begins_csv, write_csv, write_page
from kdedge.pipeline.study.cells import link_stage
from kdedge.pipeline.training.device import resolve
from kdedge.progress import log, warn

__all__ = ["check_students", "choose", "one_student", "run_students"]

Row = dict[str, Any]

_TEACHER, *_LATER = STAGES
_FOLDER = "students"
_TIMED = {"provider": "CPUExecutionProvider", "model": "int8", "batch": 1, "threads": 1}


def one_student(config: Config, name: str) -> Config:
    """Return the configuration of one student."""
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, student=name))


def check_students(names: Sequence[str], config: Config, out: Path) -> None:
    """Check a run of several students before it begins; write, create and time nothing.

    Raises:
        InputError: As of `check_stages` for any of them, or ``out`` has a run of one student or files of others.
        StageError: As of `check_stages`.
    """
    for stage in _LATER:
        if not holds_nothing(out / stage) and not _is_of_a_student(out / stage, out):
            raise InputError(
                f"{out / stage} is the result of a run of one student and is not replaced",
                "give another --out, or name one student",
            )
    known = begins_csv(out / CSV)  # written before the other files
    for path in () if known else (out / name for name in (CSV, JSON, HTML, FIGURE)):
        if not holds_nothing(path):
            raise not_ours(path, f"there is no {CSV} of several students next to it")
    for name in names:
        check_stages(tuple(STAGES), one_student(config, name), out)
        recorded_config(out / _FOLDER / name)
        check_owned(out / _FOLDER / name, STAGES)


def run_students(
    names: Sequence[str], config: Config, out: Path, tolerance_pp: float, *, force: bool = False, refresh: bool = False
) -> tuple[bool, dict[str, Any]]:
    """Train the teacher, run all later stages for each student, choose one, and compare them.

    A student that fails is recorded, and the others are still trained.

    Args:
        names: At least one student.
        config: The configuration; its student is ignored.
        out: The run directory, locked and checked.
        tolerance_pp: Accepted distance from the best INT8 validation accuracy in percentage points.
        force: As of `run_stages`.
        refresh: As of `run_stages`.

    Returns:
        Whether any stage ran, and the content of ``students.json``.

    Raises:
        KdedgeError: The teacher fails, an option or file is wrong, or every student fails.
    """
    log(short_summary(config.data))
    again = {"force": force, "refresh": refresh}
    any_ran = run_stages((_TEACHER,), one_student(config, names[0]), out, checked=True, **again)
    config = dataclasses.replace(config, runtime=resolve(config.runtime, recorded_runtime(out)))
    rows = []
    for number, name in enumerate(names, 1):
        log(f"student {number} of {len(names)}: {name}")
        directory, error = out / _FOLDER / name, ""
        directory.parent.mkdir(exist_ok=True)
        with lock_run(directory):
            link_stage(out / _TEACHER, directory / _TEACHER)
            record_config(one_student(config, name), directory, _TEACHER)
            try:
                any_ran |= run_stages(tuple(_LATER), one_student(config, name), directory, **again)
            except GateError:  # the report has the verdict
                if not (out / "bundle").exists():  # a link to the bundle that is not accepted any more
                    (out / "bundle").unlink(missing_ok=True)
            except StageError as failure:
                error = str(failure)
                warn(f"student {name}: {error}")
        rows.append(_failed(name, error) if error else _row(name, directory))
    chosen = choose(rows, tolerance_pp)
    result = {"chosen": chosen, "tolerance_pp": tolerance_pp, "students": rows}
    _show_chosen(out, out / _FOLDER / chosen)
    _write(out, result)
    return any_ran, result


def choose(rows: Sequence[Mapping[str, Any]], tolerance_pp: float) -> str:
    """Return the student with the fewest multiply-accumulates that is accurate enough; no test image decides it.

    Raises:
        StageError: Every student failed.
    """
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        raise StageError(f"every student failed; {rows[0]['student']}: {rows[0]['error']}")
    best = max(row["int8_val_pct"] for row in done)
    # Rounded, or a difference of exactly the tolerance might be larger in its last bits.
    enough = [row for row in done if round(best - row["int8_val_pct"], 9) <= tolerance_pp]
    return str(min(enough, key=lambda row: (row["macs"], -row["int8_val_pct"]))["student"])


def _is_of_a_student(path: Path, out: Path) -> bool:
    """Return whether a stage in a run is a link to a student's, or a copy of it where the system has no links."""
    if path.is_symlink():
        return True
    copies = (out / _FOLDER).glob(f"*/{path.name}/{MANIFEST}")
    return is_stage(path, path.name) and (path / MANIFEST).read_bytes() in [copy.read_bytes() for copy in copies]


def _failed(name: str, error: str) -> Row:
    return {"student": name, "status": "failed", "error": error}


def _row(name: str, directory: Path) -> Row:
    """Return the results of a finished student."""
    distilled, exported, quantized = (load_manifest(directory / stage)["facts"] for stage in _LATER[:3])
    report = load_report(directory / "benchmark")
    timed = next((row for row in report["latency"] if _TIMED.items() <= row.items()), None)
    return {
        "student": name,
        "status": "done",
        "error": "",
        "params": exported["params"],
        "macs": exported["macs"],
        "val_images": quantized["validation"]["images"],
        "fp32_val_top1_pct": distilled["val_top1_pct"],
        "int8_val_pct": quantized["validation"].get("balanced_pct", quantized["validation"]["top1_pct"]),
        "test_images": report["accuracy"]["n"],
        "fp32_test_top1_pct": report["accuracy"]["onnx_fp32_top1_pct"],
        "int8_test_top1_pct": report["accuracy"]["onnx_int8_top1_pct"],
        "loss_pp": report["gate"]["loss_pp"],
        "gate": report["gate"]["verdict"],
        "fp32_bytes": report["size"]["fp32_bytes"],
        "int8_bytes": report["size"]["int8_bytes"],
        "int8_p50_ms": timed["p50_ms"] if timed else None,
        "latency": stability_word(timed["trust"]["verdict"]) if timed else None,
    }


def _show_chosen(out: Path, directory: Path) -> None:
    """Make the stages of a run those of the chosen student."""
    for stage in _LATER:
        if is_stage(directory / stage, stage):
            link_stage(directory / stage, out / stage)
        elif is_stage(out / stage, stage):  # the gate refused the bundle
            remove_marked(out / stage, MANIFEST)
    write_json(out / CONFIG, load_json(directory / CONFIG, ("data",)))


def _write(out: Path, result: Mapping[str, Any]) -> None:
    """Write the comparison: CSV, JSON, the figure if it is possible, and the page."""
    write_csv(result["students"], out / CSV)
    write_json(out / JSON, result)
    done = [row["student"] for row in result["students"] if row["status"] == "done"]
    timed = any(row["int8_p50_ms"] for row in result["students"] if row["status"] == "done")
    (out / FIGURE).unlink(missing_ok=True)
    if len(done) > 1 and timed and importlib.util.find_spec("matplotlib"):
        folders = [out / _FOLDER / name for name in done]
        draw_comparison(tabulate([load_report(folder) for folder in folders], done), out / FIGURE)
    write_page(result, out)

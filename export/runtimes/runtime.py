"""The interface of another runtime: it converts and quantizes a student, opens the result and reports its arithmetic.

    candidates = convert_student(RUNTIMES["openvino"], student, calibration, folder)

The candidates are measured like the models of onnxruntime: the same test images, intervals and alternating windows.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.candidate import Candidate, Runnable
from kdedge.benchmarks.session import open_model
from kdedge.errors import InputError, StageError
from kdedge.inputs import InputSpec
from kdedge.install import install_command
from kdedge.progress import log

__all__ = ["Bind", "Runtime", "check_installed", "convert_student", "open_converted"]

Bind = Callable[[npt.NDArray[Any]], Callable[[], npt.NDArray[Any]]]
"""Takes a batch of inputs, and returns the call that computes its logits, float ``[N, C]``."""


@dataclass(frozen=True)
class Runtime:
    """Another runtime.

    Attributes:
        name: Its name in tables.
        files: The files of a converted student; those of ``fp32`` and ``int8`` that `load` takes are the first two.
        runs: Names of the modules that run a model.
        converts: Names of the modules that convert and quantize one.
        convert: Writes the files of a student into a folder, from ``student.onnx`` and calibration images.
        load: Opens a file for an input, on a number of threads.
        kernels: Returns the arithmetic of a file, as `kdedge.benchmarks.kernels.kernels_run` does.
    """

    name: str
    files: tuple[str, ...]
    runs: tuple[str, ...]
    converts: tuple[str, ...]
    convert: Callable[[Path, npt.NDArray[Any], Path], None]
    load: Callable[[Path, InputSpec, int], Bind]
    kernels: Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class _Opened:
    """An open model of another runtime: a `kdedge.benchmarks.candidate.Runnable`."""

    path: Path
    spec: InputSpec
    classes: int
    load_ms: float
    caller: Bind

    def logits(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Run the model: a batch of inputs to finite float32 ``[N, C]``."""
        result = np.array(self.caller(batch)(), np.float32)
        if result.shape != (len(batch), self.classes) or not np.isfinite(result).all():
            raise StageError(f"{self.path} returns logits {list(result.shape)} or ones that are not finite")
        return result


def check_installed(runtime: Runtime, *, to_convert: bool) -> None:
    """Check that the packages of a runtime are installed.

    Raises:
        InputError: One is missing.
    """
    modules = (*runtime.runs, *runtime.converts) if to_convert else runtime.runs
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise InputError(f"{runtime.name} needs {' and '.join(missing)}", install_command("runtimes"))


def convert_student(
    runtime: Runtime, student: Path, calibration: npt.NDArray[Any], folder: Path
) -> dict[Candidate, dict[str, Any]]:
    """Convert and quantize a student; return what `open_converted` returns.

    Args:
        runtime: The runtime, which is installed.
        student: ``student.onnx``.
        calibration: Training images or windows, those that the INT8 model of onnxruntime was calibrated on.
        folder: The folder to write to.

    Raises:
        StageError: The runtime cannot convert or run the student.
    """
    log(f"{runtime.name}: converting and quantizing on {len(calibration)} calibration images")
    # Converters print their progress, and the standard output of kdedge is for programs.
    with contextlib.redirect_stdout(sys.stderr), _failures(runtime, student):
        runtime.convert(student, calibration, folder)
    return open_converted(runtime, student, folder)


def open_converted(runtime: Runtime, student: Path, folder: Path) -> dict[Candidate, dict[str, Any]]:
    """Return the FP32 and the INT8 model of a converted student with their arithmetic.

    Raises:
        InputError: The folder lacks a file.
        StageError: The runtime cannot run them.
    """
    if missing := [name for name in runtime.files if not (folder / name).is_file()]:
        raise InputError(
            f"{folder} has no {missing[0]} for {runtime.name}", "`kdedge run-all --runtime` makes a bundle that has it"
        )
    onnx = open_model(student)

    def opener(candidate: Candidate, threads: int, spinning: bool) -> Runnable:
        with _failures(runtime, candidate.path):
            start = time.perf_counter_ns()
            bind = runtime.load(candidate.path, onnx.spec, threads)
            load_ms = (time.perf_counter_ns() - start) / 1e6
        return _Opened(candidate.path, onnx.spec, onnx.classes, load_ms, bind)

    found = {}
    for model, name in zip(("fp32", "int8"), runtime.files, strict=False):
        candidate = Candidate(model, folder / name, runtime.name, opener)
        with _failures(runtime, candidate.path):
            candidate.open().logits(onnx.spec.zeros(2))  # imports the package, whose time is not that of the model
            found[candidate] = runtime.kernels(candidate.path)
    return found


@contextlib.contextmanager
def _failures(runtime: Runtime, path: Path) -> Any:
    """Turn the errors of a runtime into one of kdedge. They have no common base class."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(f"{runtime.name} cannot use {path}: {reason}", "leave it out of --runtime") from error

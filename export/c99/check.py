"""Compiles the C files of a student: compares their logits with onnxruntime's, bit for bit, and measures the code."""

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import StageError
from kdedge.files import scratch_dir

__all__ = ["check_c", "code_size", "run_program"]

# The first that is installed measures the code.
_COMPILERS = {"Cortex-M3": ("arm-none-eabi-gcc", "-mcpu=cortex-m3", "-mthumb"), "this machine": ("cc",)}


def check_c(folder: Path, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> bool:
    """Compare the C files with expected logits, if this machine has a C compiler.

    Args:
        folder: From `kdedge.export.c99.source.write_c`.
        pixels: ``[N, S, S, 3] uint8``.
        logits: The expected ``[N, C] float32``.

    Returns:
        Whether they were compiled and compared.

    Raises:
        StageError: The compiler fails, or a logit differs.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return False
    with scratch_dir() as scratch:
        program = Path(scratch) / "student"
        sources = [folder / "main.c", folder / "student.c"]
        _output([compiler, "-std=c99", "-O2", *sources, "-o", program])
        classes, bits = run_program([program], pixels, logits.shape[1])
    wrong = int(((bits != logits.view(np.uint32)).any(1) | (classes != logits.argmax(1))).sum())
    if wrong:
        raise StageError(
            f"the C program returns other logits than onnxruntime for {wrong} of {len(pixels)} images",
            "the weights may overflow 16-bit sums on this CPU: see `kdedge doctor BUNDLE`",
        )
    return True


def code_size(folder: Path) -> dict[str, Any]:
    """Compile ``student.c`` with ``-Os`` and return ``code_bytes`` and ``code_for``, the CPU; empty if no compiler can.

    A cross compiler may be installed without the headers of a C library.
    """
    for cpu, (compiler, *flags) in _COMPILERS.items():
        if shutil.which(compiler) is None:
            continue
        with suppress(StageError), scratch_dir() as scratch:
            target = Path(scratch) / "student.o"
            _output([compiler, *flags, "-std=c99", "-Os", "-c", folder / "student.c", "-o", target])
            size = _output([compiler, "-print-prog-name=size"]).strip()
            sections = [line.split() for line in _output([size, "-A", target]).splitlines()]
            code = sum(int(row[1]) for row in sections if row and row[0].startswith(".text"))
            return {"code_bytes": code, "code_for": cpu}
    return {}


def _output(command: Sequence[str | Path]) -> str:
    """Run a tool of a compiler and return what it prints."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise StageError(f"{command[0]} fails: {result.stderr.strip()}", "install a C compiler with its tools")
    return result.stdout


def run_program(
    command: Sequence[str | Path], pixels: npt.NDArray[np.uint8], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Run a compiled ``main.c`` of a student with ``count`` classes.

    Returns:
        The classes, ``[N] int64``, and the bits of the logits, ``[N, C] uint32``.

    Raises:
        StageError: The program fails.
    """
    result = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=False)
    if result.returncode:
        raise StageError(f"{command[-1]} ended with code {result.returncode}: {result.stderr.decode(errors='replace')}")
    rows = [line.split()[: count + 1] for line in result.stdout.splitlines()]
    bits = np.array([[int(word, 16) for word in row[1:]] for row in rows], np.uint32)
    return np.array([int(row[0]) for row in rows]), bits

"""Compiles the C files of a student and compares their logits with onnxruntime's, bit for bit."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdedge.errors import StageError
from kdedge.files import scratch_dir

__all__ = ["check_c", "run_program"]


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
        built = subprocess.run(
            [compiler, "-std=c99", "-O2", *sources, "-o", program], capture_output=True, text=True, check=False
        )
        if built.returncode:
            raise StageError(f"{compiler} does not compile {folder}: {built.stderr.strip()}")
        classes, bits = run_program([program], pixels, logits.shape[1])
    wrong = int(((bits != logits.view(np.uint32)).any(1) | (classes != logits.argmax(1))).sum())
    if wrong:
        raise StageError(
            f"the C program returns other logits than onnxruntime for {wrong} of {len(pixels)} images",
            "the weights may overflow 16-bit sums on this CPU: see `kdedge doctor BUNDLE`",
        )
    return True


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

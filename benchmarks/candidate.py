"""A model as one runtime runs it: a file, and an execution provider of onnxruntime or another runtime that opens it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.providers import CPU
from kdedge.benchmarks.session import open_model, session_options
from kdedge.inputs import InputSpec

__all__ = ["Candidate", "Opener", "Runnable", "onnx_candidates"]


class Runnable(Protocol):
    """An open model of any runtime, such as `kdedge.benchmarks.session.Model`."""

    @property
    def spec(self) -> InputSpec:
        """The input."""

    @property
    def classes(self) -> int:
        """Number of classes C."""

    @property
    def load_ms(self) -> float:
        """Time to read and prepare the file, in milliseconds."""

    def logits(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Run the model: a batch of inputs to finite float32 ``[N, C]``."""

    def caller(self, batch: npt.NDArray[Any]) -> Callable[[], object]:
        """Return a call that only runs the model on a fixed batch, for timing."""


Opener = Callable[["Candidate", int, bool], Runnable]
"""Opens a candidate with a number of threads; the flag lets waiting threads spin."""


def _open_onnx(candidate: "Candidate", threads: int, spinning: bool) -> Runnable:
    options = session_options(threads, spinning=spinning)
    return open_model(candidate.path, provider=candidate.provider, threads=threads, options=options)


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    Attributes:
        model: ``fp32``, ``int8`` or ``fp16``.
        path: Its file.
        provider: Execution provider of onnxruntime, or the name of another runtime.
        opener: Opens it.
    """

    model: str
    path: Path
    provider: str = CPU
    opener: Opener = _open_onnx

    @property
    def size_bytes(self) -> int:
        """Size of the file, and of the file of weights that OpenVINO keeps next to it."""
        files = [self.path, self.path.with_suffix(".bin")] if self.path.suffix == ".xml" else [self.path]
        return sum(file.stat().st_size for file in files)

    def open(self, threads: int = 1, *, spinning: bool = False) -> Runnable:
        """Open the model.

        Raises:
            InputError: The file cannot be read.
            StageError: The execution provider or runtime is unavailable.
        """
        return self.opener(self, threads, spinning)


def onnx_candidates(paths: Mapping[str, Path], provider: str = CPU) -> list[Candidate]:
    """Return the ONNX models ``fp32``, ``int8``, … on an execution provider of onnxruntime."""
    return [Candidate(name, path, provider) for name, path in paths.items()]

"""Two more runtimes for `experiments/runtimes.py`: onnxruntime-web (WebAssembly in node), and the C code of a student.

``npm install --prefix FOLDER onnxruntime-web`` makes the folder for `web_candidates`; `c_candidate` needs ``cc``. The
latency of onnxruntime-web includes a message of 5 bytes to the process of node and back.
"""

import ctypes
import json
import struct
import subprocess
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.candidate import Candidate, Runnable
from kdedge.benchmarks.session import open_model
from kdedge.export.c99.network import read_network
from kdedge.export.c99.source import write_c
from kdedge.inputs import InputSpec

__all__ = ["c_candidate", "web_candidates"]

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class _Web:
    """A model in a process of node; see ``web_runtime.mjs``."""

    def __init__(self, folder: Path, path: Path) -> None:
        known = open_model(path)
        self.spec: InputSpec = known.spec
        self.classes: int = known.classes
        script = Path(__file__).with_name("web_runtime.mjs")
        command = ["node", script, folder.resolve(), path.resolve(), str(self.spec.size)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, self._process.kill)
        assert self._process.stdout is not None
        self.load_ms: float = json.loads(self._process.stdout.readline())["load_ms"]

    def logits(self, batch: Pixels) -> Logits:
        answer = self._send(struct.pack("<I", len(batch)) + batch.tobytes(), 4 * len(batch) * self.classes)
        return np.frombuffer(answer, np.float32).reshape(len(batch), self.classes)

    def caller(self, batch: Pixels) -> Callable[[], object]:
        self.logits(batch)
        again = struct.pack("<I", 0)
        return lambda: self._send(again, 1)

    def _send(self, message: bytes, count: int) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(message)
        self._process.stdin.flush()
        return self._process.stdout.read(count)


@dataclass(frozen=True)
class _Compiled:
    """The compiled C code of a student."""

    spec: InputSpec
    classes: int
    load_ms: float
    classify: Any

    def logits(self, batch: Pixels) -> Logits:
        result = np.zeros((len(batch), self.classes), np.float32)
        pixels = np.ascontiguousarray(batch)
        for image, row in zip(pixels, result, strict=True):
            self.classify(image.ctypes.data, row.ctypes.data)
        return result

    def caller(self, batch: Pixels) -> Callable[[], object]:
        return lambda: self.logits(batch)


def web_candidates(folder: Path, models: dict[str, Path]) -> dict[Candidate, dict[str, Any]]:
    """Return FP32 and INT8 in onnxruntime-web; it does not show which kernels run."""
    name = "onnxruntime-web"

    def opener(candidate: Candidate, threads: int, spinning: bool) -> Runnable:
        return _Web(folder, candidate.path)

    kernels = {"convs": {}, "gemms": {}, "subgraphs": 1, "nodes_by_provider": {name: 1}}
    return {Candidate(model, path, name, opener): kernels for model, path in models.items()}


def c_candidate(int8: Path, folder: Path) -> dict[Candidate, dict[str, Any]]:
    """Write and compile the C code of an INT8 model, and return it."""
    name, known, network = "C (export-c)", open_model(int8), read_network(int8)
    write_c(network, folder)
    library = folder / "student.so"
    options = ["-std=c99", "-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run(["cc", *options, folder / "student.c", "-o", library], check=True)

    def opener(candidate: Candidate, threads: int, spinning: bool) -> Runnable:
        start = time.perf_counter_ns()
        classify = ctypes.CDLL(str(candidate.path.resolve())).student_classify
        classify.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        return _Compiled(known.spec, known.classes, (time.perf_counter_ns() - start) / 1e6, classify)

    layers = len(network.convs)
    kernels = {"convs": {"integer": layers}, "gemms": {"integer": 1}, "nodes_by_provider": {name: layers + 2}}
    return {Candidate("int8", library, name, opener): kernels}

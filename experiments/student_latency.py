"""Measure the INT8 latency of student candidates with random weights, before any of them is trained.

    python experiments/student_latency.py [--rounds 40] [--save FOLDER] [NAME ...]

Exports and quantizes every candidate as kdedge does (speed does not depend on the values of weights), counts the
convolutions that onnxruntime runs as integers, then times all candidates in turn, one thread, batch 1. The least time
of all calls is robust to other load on the machine, which only adds time; the first quartile is given, too. Prints the
load of the machine and a Markdown table. With --save, a folder of each has both models for `kdedge benchmark`.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from kdedge.benchmarks.session import CPU, import_onnxruntime, session_options
from kdedge.export.graph import count_macs, read_model
from kdedge.export.onnx_export import export_student
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.proof import integer_proof, why_not_integer
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.inputs import image_input
from kdedge.pipeline.models.registry import STUDENTS, LiteSpec, ResidualSpec
from kdedge.pipeline.models.student import Student, build_lite, build_residual, build_student

SIZE, CLASSES = 32, tuple("0123456789")
CALLS = 10  # of a model in a row, after one that warms the caches
CANDIDATES: dict[str, LiteSpec | ResidualSpec] = {
    **{
        f"five {'-'.join(map(str, widths))} pool {pools}": LiteSpec(widths, pools, (), "")
        for widths, pools in (
            ((16, 32, 48, 80, 64), (1, 2, 3)),
            ((32, 32, 48, 64, 64), (1, 2, 3)),
            ((32, 48, 80, 128, 128), (1, 2, 3)),
        )
    },
    **{
        f"{layer} {'-'.join(map(str, widths))} x {'-'.join(map(str, depths))}": ResidualSpec(widths, depths, layer, "")
        for layer, widths, depths in (
            ("full", (16, 16, 32), (1, 2, 2)),
            ("full", (16, 32, 48), (1, 1, 1)),
            ("full", (16, 32, 64), (1, 1, 1)),
            ("full", (16, 32, 64), (3, 3, 3)),
            ("full", (16, 48, 80), (1, 2, 2)),
            ("full", (16, 48, 96), (1, 2, 1)),
            ("full", (32, 64, 128), (1, 1, 1)),
            ("full", (32, 64, 128), (2, 2, 2)),
            ("full", (32, 80, 160), (1, 2, 2)),
            ("full", (32, 96, 192), (1, 1, 1)),
            ("full", (16, 64, 128, 192), (1, 1, 1, 1)),
            ("blueprint", (16, 32, 64), (6, 6, 6)),
            ("blueprint", (32, 64, 128), (2, 2, 2)),
            ("blueprint", (48, 96, 176), (1, 1, 1)),
            ("blueprint", (64, 128, 256), (2, 2, 2)),
            ("blueprint", (64, 128, 256), (4, 4, 4)),
            ("depthwise", (32, 64, 128), (2, 2, 2)),
            ("depthwise", (64, 128, 256), (2, 2, 2)),
            ("depthwise", (64, 128, 256), (4, 4, 4)),
        )
    },
}


def build(name: str) -> Student:
    """Return a candidate, or a registered student, with random weights."""
    torch.manual_seed(0)
    spec = CANDIDATES.get(name)
    if spec is None:
        return build_student(name, len(CLASSES), image_input(SIZE))
    if isinstance(spec, ResidualSpec):
        return build_residual(spec, len(CLASSES), image_input(SIZE))
    return build_lite(spec, len(CLASSES), image_input(SIZE))


def quantize(model: Student, images: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[bytes, bytes, float]:
    """Return the FP32 and the INT8 model and their million multiply-accumulates."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_student(model.eval(), image_input(SIZE), CLASSES, path)
        fp32 = read_model(path)
        exported = path.read_bytes()
    return exported, Quantizer.from_model(fp32, images).build(Candidate()), count_macs(fp32) / 1e6


def main() -> None:
    """Parse the command line, build all candidates, time them in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*(name for name, spec in STUDENTS.items() if not spec.signal), *CANDIDATES]
    parser.add_argument("names", nargs="*", help="registered students and candidates (default: all)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)
    rows: dict[str, tuple[int, float, str, Any]] = {}
    for name in options.names or names:
        model = build(name)
        exported, data, macs = quantize(model, images)
        if options.save:
            folder = options.save / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "student.onnx").write_bytes(exported)
            (folder / "student.int8.onnx").write_bytes(data)
        proof = integer_proof(data)
        convs = sum(node.op_type == "Conv" for node in onnx.load_from_string(data).graph.node)
        integer = f"{proof['integer_convs']} of {convs}" + (" *" if why_not_integer(proof) else "")
        session = import_onnxruntime().InferenceSession(data, session_options(1), providers=[CPU])
        rows[name] = sum(one.numel() for one in model.parameters()), macs, integer, session
    times: dict[str, list[float]] = {name: [] for name in rows}
    before = os.getloadavg()[0]
    for _ in range(options.rounds):
        for name, (_, _, _, session) in rows.items():
            feed = {session.get_inputs()[0].name: images[:1]}
            session.run(None, feed)
            for _ in range(CALLS):
                start = time.perf_counter()
                session.run(None, feed)
                times[name].append(1000 * (time.perf_counter() - start))
    print(f"load {before:.1f} to {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; * not all integer\n")
    print("| candidate | params | MMAC | integer convs | INT8 ms, least | first quartile | MMAC per ms |")
    print("|---|---|---|---|---|---|---|")
    for name, (params, macs, integer, _) in rows.items():
        least, quartile = min(times[name]), np.quantile(times[name], 0.25)
        row = (name, f"{params / 1e6:.3f} M", f"{macs:.1f}", integer, f"{least:.3f}", f"{quartile:.3f}")
        print(f"| {' | '.join(row)} | {macs / least:.0f} |")


if __name__ == "__main__":
    main()

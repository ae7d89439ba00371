"""Latency on CUDA: FP32, FP16 and INT8, each with what the provider really ran.

onnxruntime's CUDA provider has no INT8 convolution: a QDQ graph runs in float between Quantize and Dequantize, and
QLinear operators fall back to the CPU with copies around them. So every row says in what arithmetic its convolutions
ran and on which provider its nodes lay. FP16, which is what speeds up a GPU, is made from the FP32 model. Latency is
told with the copies of input and output (``session.run`` on arrays of the host) and without them (``on_device``: IO
binding to memory of the device).

The tests run this path on the CPU provider, where all but the device is the same; on CUDA it was run once (`LOG.md`,
section 48). Load by other programs on the GPU is not among the evidence of the verdict.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdedge.benchmarks.latency import MOST_WINDOWS, measure_latency
from kdedge.benchmarks.providers import what_ran
from kdedge.benchmarks.session import CUDA
from kdedge.files import scratch_dir

__all__ = ["measure_cuda", "write_fp16"]


def measure_cuda(
    models: Mapping[str, Path],
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    provider: str = CUDA,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, str]]]:
    """Measure the latency of FP32, FP16 and INT8.

    Args:
        models: The files of ``fp32`` and ``int8``.
        batches: Batch sizes to measure.
        threads: Intra-op thread counts, for the nodes that stay on the CPU.
        seconds: Measuring time per model, batch size and thread count.
        provider: Execution provider.

    Returns:
        Rows and raw samples as `measure_latency` gives them, the rows with ``ran_as`` (see `proof.what_ran`); and what
        could not be measured, as in ``unavailable`` of ``report.json``.

    Raises:
        InputError: A model cannot be read.
        StageError: The execution provider could not be started.
    """
    unavailable = []
    with scratch_dir() as folder:
        paths = {"fp32": models["fp32"], "int8": models["int8"]}
        if importlib.util.find_spec("onnx"):
            paths = {**paths, "fp16": write_fp16(models["fp32"], Path(folder) / "student.fp16.onnx")}
        else:
            unavailable.append(
                {
                    "provider": f"{provider.removesuffix('ExecutionProvider')} FP16",
                    "reason": "the FP16 model is made from the FP32 one with the package onnx, which is not installed",
                    "fix": "pip install onnx",
                }
            )
        rows, raw = measure_latency(
            paths,
            provider=provider,
            batches=batches,
            threads=threads,
            seconds=seconds,
            most_windows=MOST_WINDOWS,
            on_device=True,
        )
        ran_as = {name: what_ran(path, provider) for name, path in paths.items()}
    return [{**row, "ran_as": ran_as[row["model"]]} for row in rows], raw, unavailable


def write_fp16(fp32: Path, path: Path) -> Path:
    """Write the FP16 version of an FP32 model: weights and arithmetic in half precision, inputs and outputs as before.

    Needs the package onnx.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(fp32), keep_io_types=True), path)
    return path

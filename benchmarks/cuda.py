"""Latency on CUDA: FP32, FP16 and INT8, each with the arithmetic and the provider of its kernels.

onnxruntime's CUDA provider has no INT8 convolution: a QDQ graph runs in float between Quantize and Dequantize, and
QLinear operators fall back to the CPU with copies around them. So every row has the arithmetic of its convolutions and
the providers of its nodes. FP16, the fast format on a GPU, is made from the FP32 model. Latency is measured with the
copies of input and output (``session.run`` on arrays of the host) and without them (``on_device``: IO binding to memory
of the device).

The tests run this path on the CPU provider; on CUDA it was run once (`LOG.md`, section 48). The stability verdict does
not include load by other programs on the GPU.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdedge.benchmarks.latency import MOST_WINDOWS, measure_latency
from kdedge.benchmarks.providers import kernels_run
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
        batches: Batch sizes.
        threads: Intra-op thread counts, for the nodes that stay on the CPU.
        seconds: Measuring time per model, batch size and thread count.
        provider: Execution provider.

    Returns:
        Rows and raw samples of `measure_latency`, the rows with ``ran_as`` (see `kernels_run`), and the rows of
        ``unavailable`` of ``report.json``.

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
        ran_as = {name: kernels_run(path, provider) for name, path in paths.items()}
    return [{**row, "ran_as": ran_as[row["model"]]} for row in rows], raw, unavailable


def write_fp16(fp32: Path, path: Path) -> Path:
    """Write the FP16 version of an FP32 model, with the same inputs and outputs. Needs the package onnx."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(fp32), keep_io_types=True), path)
    return path

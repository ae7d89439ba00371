"""Other ways to run the same models than onnxruntime's CPU provider, and whether they compute the same.

Each is tried once before anything is measured: an execution provider may be listed and not start, and it may run no
node of a model, whose latency would then be the CPU's. The profile of that run names the provider and the arithmetic of
every kernel. onnxruntime's CUDA provider has no INT8 convolution: a QDQ graph runs in float between Quantize and
Dequantize, and QLinear operators fall back to the CPU with copies around them. FP16, the fast format on a GPU, is made
from the FP32 model.

CUDA was run once (`LOG.md`, section 48), OpenVINO in section 64, others never. The stability verdict does not include
load by other programs on a GPU.
"""

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.accuracy import predict_logits, top1_pct
from kdedge.benchmarks.candidate import Candidate, onnx_candidates
from kdedge.benchmarks.gate import judge
from kdedge.benchmarks.grouped import sampling_of
from kdedge.benchmarks.kernels import kernels_run
from kdedge.benchmarks.providers import GPUS
from kdedge.benchmarks.session import onnxruntime_errors
from kdedge.benchmarks.units import short_provider
from kdedge.dataset import Split
from kdedge.errors import InputError, StageError
from kdedge.machine import usable_cores

__all__ = ["comparison", "try_provider", "write_fp16"]

_LOADS = 7
_LOSS = ("loss_pp", "loss_lower95_pp", "loss_upper95_pp")


def try_provider(
    provider: str, models: Mapping[str, Path], batch: int, folder: Path
) -> tuple[dict[Candidate, dict[str, Any]], list[dict[str, str]]]:
    """Run FP32, INT8 and, on a GPU, FP16 once on an execution provider.

    Args:
        provider: Its full name.
        models: The files of ``fp32`` and ``int8``.
        batch: The largest batch that will be measured; it may exceed the memory of a GPU.
        folder: Directory of the FP16 model.

    Returns:
        The models that run there with their kernels (see `kdedge.benchmarks.kernels.kernels_run`), and the rows of
        ``unavailable`` of ``report.json``.
    """
    paths, unavailable = dict(models), []

    def lacking(model: str, reason: str, fix: str) -> None:
        unavailable.append({"provider": f"{short_provider(provider)} {model}".strip(), "reason": reason, "fix": fix})

    if provider in GPUS and importlib.util.find_spec("onnx"):
        paths["fp16"] = write_fp16(models["fp32"], folder / "student.fp16.onnx")
    elif provider in GPUS:
        reason = "the FP16 model is made from the FP32 one with the package onnx, which is not installed"
        lacking("FP16", reason, "pip install onnx")
    failures: tuple[type[Exception], ...] = (StageError, InputError, *onnxruntime_errors())
    ran: dict[Candidate, dict[str, Any]] = {}
    for candidate in onnx_candidates(paths, provider):
        try:
            kernels = kernels_run(candidate.path, provider)
            opened = candidate.open()
            opened.logits(opened.spec.zeros(batch))
        except failures as error:
            # onnxruntime fails late, on loading the libraries of a device or on a batch that exceeds its memory.
            fix = "pip install 'onnxruntime-gpu[cuda,cudnn]'  (if the CUDA or cuDNN libraries cannot be loaded)"
            lacking(candidate.model.upper(), str(error), fix if provider in GPUS else "see `kdedge doctor`")
            continue
        if kernels["nodes_by_provider"].get(provider):
            ran[candidate] = kernels
        else:
            reason = "onnxruntime runs no node of the model there, all on the CPU"
            lacking(candidate.model.upper(), reason, f"leave it out of --provider ({short_provider(provider)})")
    return ran, unavailable


def comparison(
    reference: Mapping[Candidate, npt.NDArray[np.int64]],
    others: Mapping[Candidate, Mapping[str, Any]],
    test: Split,
    *,
    balanced: bool,
) -> list[dict[str, Any]]:
    """Compare the predictions of other ways to run the models with those of onnxruntime's CPU provider.

    Args:
        reference: FP32 and INT8 on onnxruntime's CPU provider with their predictions, ``[N] int64``.
        others: Models that run on this host, with their kernels.
        test: The test images.
        balanced: Whether losses are of balanced accuracy, not top-1.

    Returns:
        The rows of ``runtimes`` of ``report.json``, those of the reference first: ``provider``, ``model``, ``bytes``;
        ``top1_pct`` with its 95 % interval ``ci95_pct``; ``own_loss`` and ``loss``, each ``loss_pp`` with its 95 %
        interval, against FP32 of the same provider and against FP32 on onnxruntime's CPU provider (None for these
        themselves); ``changed_answers``: predictions other than those of the same model there (FP16: of FP32);
        ``load_ms`` and ``first_run_ms`` at batch 1: medians of alternating loads;
        ``layers`` and ``integer_layers``: numbers of convolutions and matrix products (None: inside a subgraph).
    """
    expected = {candidate.model: predicted for candidate, predicted in reference.items()}
    answers = dict(reference)
    for candidate in others:
        title = f"accuracy {candidate.model.upper()}, {short_provider(candidate.provider)}"
        answers[candidate] = predict_logits(candidate.open(usable_cores()), test.images, title=title).argmax(1)
    own = {candidate.provider: answers[candidate] for candidate in answers if candidate.model == "fp32"}

    def loss(fp32: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> dict[str, float]:
        right = (fp32 == test.labels, other == test.labels)
        gate = judge(*right, 0.5, labels=test.labels, balanced=balanced, groups=test.groups)
        return {key: gate[key] for key in _LOSS}

    kernels = {**{candidate: kernels_run(candidate.path, candidate.provider) for candidate in reference}, **others}
    loads = _load_times(list(answers))
    rows = []
    for candidate, predicted in answers.items():
        right, provider, model = predicted == test.labels, candidate.provider, candidate.model
        sampling = sampling_of(expected["fp32"] == test.labels, right, test.groups)
        rows.append(
            {
                "provider": provider,
                "model": model,
                "bytes": candidate.size_bytes,
                "top1_pct": top1_pct(right),
                "ci95_pct": sampling.wilson_pct(int(right.sum()), len(right)),
                "own_loss": loss(own[provider], predicted) if provider in own and model != "fp32" else None,
                "loss": None if predicted is expected["fp32"] else loss(expected["fp32"], predicted),
                **loads[candidate],
                **_layers(kernels[candidate]),
                "changed_answers": int(np.count_nonzero(expected.get(model, expected["fp32"]) != predicted)),
            }
        )
    return rows


def _load_times(candidates: list[Candidate]) -> dict[Candidate, dict[str, float]]:
    """Return the medians of load time and first run at batch 1 on one thread, from loads in ABBA order."""
    times: dict[Candidate, list[tuple[float, float]]] = {candidate: [] for candidate in candidates}
    order = list(candidates)
    for _ in range(_LOADS):
        for candidate in order:
            opened = candidate.open()
            inputs = opened.spec.zeros(1)
            start = time.perf_counter_ns()
            opened.logits(inputs)
            times[candidate].append((opened.load_ms, (time.perf_counter_ns() - start) / 1e6))
        order.reverse()
    return {
        candidate: dict(zip(("load_ms", "first_run_ms"), np.median(found, 0).round(3).tolist(), strict=True))
        for candidate, found in times.items()
    }


def _layers(kernels: Mapping[str, Any]) -> dict[str, int | None]:
    if kernels.get("subgraphs"):
        return {"layers": None, "integer_layers": None}
    counts = [kernels[kind] for kind in ("convs", "gemms")]
    return {
        "layers": sum(sum(found.values()) for found in counts),
        "integer_layers": sum(found.get("integer", 0) for found in counts),
    }


def write_fp16(fp32: Path, path: Path) -> Path:
    """Write the FP16 version of an FP32 model, with the same inputs and outputs. Needs the package onnx."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(fp32), keep_io_types=True), path)
    return path

"""Measure an FP32 and an INT8 model on this host and write ``report.json`` and its pages.

    report = run_benchmark(
        settings, fp32_model, int8_model, dataset,
        images_sha256=dataset.test_sha256(), run_facts=facts, torch_top1=None, out_dir=out,
    )

It measures accuracy, gate, kernels, latency, memory, host and, on request, the predictions on emulated CPUs. It is the
only module that reads test images, once. It writes ``report.json``, ``report.html``, ``report.md``, ``figures/*.png``
and ``latency_samples.json``. A failed gate is a result, not an error.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.accuracy import (
    answer_changes,
    balanced_pct,
    macro_f1_pct,
    per_class_table,
    per_group_table,
    predict_logits,
    top1_pct,
)
from kdedge.benchmarks.affinity import check_cpus, pinned
from kdedge.benchmarks.alternatives import comparison, try_provider
from kdedge.benchmarks.candidate import Candidate, onnx_candidates
from kdedge.benchmarks.chance import majority_baseline
from kdedge.benchmarks.gate import judge
from kdedge.benchmarks.grouped import sampling_of
from kdedge.benchmarks.host import asked_providers, cuda_problem, host_record, wrong_host
from kdedge.benchmarks.kernels import int8_proof
from kdedge.benchmarks.latency import MOST_WINDOWS, measure_latency
from kdedge.benchmarks.memory import check_limit, measure_memory
from kdedge.benchmarks.mistakes import confident_mistakes, confusions
from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.benchmarks.providers import CUDA
from kdedge.benchmarks.report.compare import check_comparable, comparison_table, load_others
from kdedge.benchmarks.report.pages import write_report
from kdedge.benchmarks.session import check_fits, open_model
from kdedge.dataset import Dataset, Split
from kdedge.errors import InputError, StageError
from kdedge.files import scratch_dir, write_atomic
from kdedge.machine import usable_cores
from kdedge.manifest import git_commit, versions
from kdedge.parsing import parse_counts, parse_cpus
from kdedge.progress import log, warn

__all__ = ["REPORT_SCHEMA", "Emulate", "TorchTop1", "run_benchmark"]

REPORT_SCHEMA = 1

TorchTop1 = Callable[[Split], Mapping[str, float | None]]
"""Scores the PyTorch models on the test images: ``teacher_test_top1_pct`` and ``torch_fp32_top1_pct``, in percent."""

Emulate = Callable[[Path, Split], list[dict[str, Any]]]
"""Runs a model on emulated CPUs with some of these images.

Returns for every CPU the keys of `kdedge.benchmarks.emulate.emulator.Emulation.as_dict`, with the index of a test image
under ``image``.
"""

_RUN = ("preset", "data", "seed", "commit", "wall_s", "versions")
_TEACHER = ("arch", "params", "weights", "test_top1_pct")
_STUDENT = ("arch", "params", "macs", "method", "epochs")


def run_benchmark(
    settings: BenchmarkConfig,
    fp32_model: Path,
    int8_model: Path,
    dataset: Dataset,
    *,
    images_sha256: str,
    run_facts: Mapping[str, Any],
    torch_top1: TorchTop1 | None,
    emulate: Emulate | None = None,
    runtimes: Mapping[Candidate, dict[str, Any]] | None = None,
    out_dir: Path,
) -> dict[str, Any]:
    """Measure both models and write the report.

    Args:
        settings: Options of the benchmark.
        fp32_model: ``student.onnx``.
        int8_model: ``student.int8.onnx``.
        dataset: Its `test` is called exactly once, after both models were checked.
        images_sha256: From `Dataset.test_sha256`, which takes as long as reading the images.
        run_facts: Results of earlier stages: the mappings ``run``, ``teacher`` and ``student`` with the keys of
            ``report.json``, ``training``, the rows of the training log, ``quantization``, the record of the search, and
            ``c``, the bytes of the INT8 model as C code. Missing keys become null.
        torch_top1: Scores the PyTorch models on the same images; None without torch.
        emulate: Runs the INT8 model on emulated CPUs; None: no emulation. Other predictions there do not fail the gate.
        runtimes: The student in other runtimes, with its kernels; None: none.
        out_dir: Directory of the results; created if needed.

    Returns:
        The content of ``report.json``.

    Raises:
        InputError: A model is unusable or does not fit the data set; an option is wrong; there are no test images; a
            report of ``--compare-with`` is missing, or of another host or other test images.
        StageError: A convolution or matrix product of the INT8 model unexpectedly runs in float, or the emulation
            failed.
    """
    cpus = parse_cpus(settings.affinity, "--affinity")
    check_cpus(cpus)
    check_limit(settings.memory_limit)
    asked = asked_providers(settings.provider)
    host, others = host_record(), load_others(settings.compare_with)
    images = {"images_sha256": images_sha256, **dataset.spec.record}
    check_comparable(others, host, dataset.name, images)
    paths = {"fp32": fp32_model, "int8": int8_model}
    models = {name: open_model(path, threads=usable_cores()) for name, path in paths.items()}
    for model in models.values():
        check_fits(model, dataset.class_names, dataset.spec)

    if problem := wrong_host(models["int8"]):
        warn(problem)
    proof = int8_proof(int8_model)
    if left := proof["float_by_accident"]:
        raise StageError(
            f"onnxruntime unexpectedly runs these layers of {int8_model} in FP32: {', '.join(left)}",
            "run `kdedge quantize` with this version of onnxruntime",
        )
    test = dataset.test()
    if not len(test.labels):
        raise InputError(f"the data set has no test {dataset.spec.unit}s", "add them to its test part")
    check_comparable(others, host, dataset.name, {**images, "n": len(test.labels)})
    logits = {
        name: predict_logits(model, test.images, title=f"accuracy {name.upper()}") for name, model in models.items()
    }
    answers = {name: found.argmax(1) for name, found in logits.items()}
    right = {name: answer == test.labels for name, answer in answers.items()}
    # Free the threads and memory of these sessions before timing.
    del models, model
    scores = dict(torch_top1(test)) if torch_top1 else {}
    teacher_pct = scores.get("teacher_test_top1_pct")
    teacher_score = {} if teacher_pct is None else {"test_top1_pct": teacher_pct}
    gate = judge(
        right["fp32"],
        right["int8"],
        settings.limit_pp,
        changed=int(np.count_nonzero(answers["fp32"] != answers["int8"])),
        labels=test.labels,
        class_names=dataset.class_names,
        balanced=settings.metric == "balanced",
        groups=test.groups,
        unit=dataset.spec.unit,
    )
    sampling = sampling_of(right["fp32"], right["int8"], test.groups)
    log(f"gate: {gate['verdict']}")  # the summary has the reason
    majority = majority_baseline(test.labels)
    mistakes = confident_mistakes(test.labels, logits["int8"], dataset.class_names)

    here = onnx_candidates(paths)
    with scratch_dir() as folder, pinned(cpus):
        ran_as, unavailable = _try_others(paths, settings, asked, Path(folder))
        ran_as |= runtimes or {}
        latency, samples = measure_latency(
            [*here, *ran_as],
            batches=_batches(settings),
            threads=_thread_counts(settings),
            seconds=settings.seconds,
            most_windows=MOST_WINDOWS,
            spinning=settings.spinning,
        )
        compared = comparison(
            {candidate: answers[candidate.model] for candidate in here},
            ran_as,
            test,
            balanced=settings.metric == "balanced",
        )
        memory = measure_memory(paths, threads=_thread_counts(settings)[0], limit_mib=settings.memory_limit)
    kernels = {(candidate.provider, candidate.model): found for candidate, found in ran_as.items()}
    portability = {"emulated": emulate(int8_model, test)} if emulate else None
    known = {name: dict(run_facts.get(name) or {}) for name in ("run", "teacher", "student")}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    report = {
        "schema": REPORT_SCHEMA,
        "run": _complete(
            {"data": dataset.name, "commit": git_commit(), "versions": versions(), **known["run"]},
            _RUN,
        ),
        "teacher": _complete({**known["teacher"], **teacher_score}, _TEACHER),
        "student": _complete(known["student"], _STUDENT),
        "accuracy": {
            "split": "test",
            "n": len(test.labels),
            **images,
            "torch_fp32_top1_pct": scores.get("torch_fp32_top1_pct"),
            "onnx_fp32_top1_pct": top1_pct(right["fp32"]),
            "onnx_int8_top1_pct": top1_pct(right["int8"]),
            "onnx_fp32_ci95_pct": sampling.wilson_pct(int(right["fp32"].sum()), len(test.labels)),
            "onnx_int8_ci95_pct": sampling.wilson_pct(int(right["int8"].sum()), len(test.labels)),
            "majority_class": dataset.class_names[majority.label],
            "majority_pct": round(majority.top1_pct, 4),
            "balanced_pct": balanced_pct(right["int8"], test.labels),
            "fp32_balanced_pct": balanced_pct(right["fp32"], test.labels),
            "macro_f1_pct": macro_f1_pct(test.labels, answers["int8"]),
            "fp32_macro_f1_pct": macro_f1_pct(test.labels, answers["fp32"]),
        },
        "gate": gate,
        "size": {
            "fp32_bytes": sizes["fp32"],
            "int8_bytes": sizes["int8"],
            "ratio": round(sizes["fp32"] / sizes["int8"], 4),
        },
        "int8_proof": proof,
        "latency": [
            {**row, "ran_as": found} if (found := kernels.get((row["provider"], row["model"]))) else row
            for row in latency
        ],
        "runtimes": compared if ran_as else [],
        "unavailable": unavailable,
        "memory": memory,
        "portability": portability,
        # The paths of other reports are private; their numbers follow.
        "benchmark": {key: value for key, value in dataclasses.asdict(settings).items() if key != "compare_with"},
        "host": host,
        "per_class": per_class_table(
            test.labels, answers["fp32"], answers["int8"], dataset.class_names, sampling
        ),
        "per_group": per_group_table(test.groups, right["fp32"], right["int8"]),
        "confusions": confusions(test.labels, answers["int8"], dataset.class_names),
        "mistakes": mistakes,
        "answer_changes": answer_changes(test.labels, answers["fp32"], answers["int8"], dataset.class_names),
        "quantization": run_facts.get("quantization"),
        "c": run_facts.get("c"),
        "training": [dict(row) for row in run_facts.get("training") or []],
    }  # fmt: skip
    report["beside"] = comparison_table(report, others)
    out_dir.mkdir(parents=True, exist_ok=True)
    pictures = None if test.signal else test.images[[row["image"] for row in mistakes]]
    write_report(report, out_dir, pictures, _examples(test) if test.signal else None)
    # One line per case.
    lines = ",\n".join(json.dumps(case) for case in samples)
    write_atomic(out_dir / "latency_samples.json", f"[\n{lines}\n]\n".encode())
    return report


def _examples(test: Split) -> dict[str, npt.NDArray[np.float32]]:
    """Return the first test window of each class, normalised, ``[C, L]``."""
    found, first = np.unique(test.labels, return_index=True)
    windows = test.spec.normalised(test.images[first])[:, :, 0]
    return {test.class_names[label]: window for label, window in zip(found.tolist(), windows, strict=True)}


def _try_others(
    paths: Mapping[str, Path], settings: BenchmarkConfig, asked: Sequence[str], folder: Path
) -> tuple[dict[Candidate, dict[str, Any]], list[dict[str, str]]]:
    """Return the models that run on other providers with their kernels, and the unavailable ones.

    Raises:
        StageError: Neither model runs on a provider that ``--provider`` names.
    """
    if not settings.provider and (problem := cuda_problem()):
        return {}, [problem]
    ran: dict[Candidate, dict[str, Any]] = {}
    unavailable: list[dict[str, str]] = []
    for provider in asked if settings.provider else [CUDA]:
        found, lacking = try_provider(provider, paths, max(_batches(settings)), folder)
        if settings.provider and not found:
            raise StageError(f"{provider} does not run the models: {lacking[0]['reason']}", lacking[0]["fix"])
        ran |= found
        unavailable += lacking
    return ran, unavailable


def _batches(settings: BenchmarkConfig) -> list[int]:
    return parse_counts(settings.batches, "--latency-batches", 4096)


def _thread_counts(settings: BenchmarkConfig) -> list[int]:
    return parse_counts(settings.threads, "--latency-threads", 1024)


def _complete(section: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a section of the report that begins with these keys, null if unknown."""
    return {**dict.fromkeys(keys), **section}

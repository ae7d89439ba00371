"""What decides the result of a stage: the part of the configuration that its manifest records, JSON-ready."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdedge.files import file_sha256
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import RENAMED
from kdedge.pipeline.data.folder import folder_name
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.training.options import TeacherConfig

__all__ = ["of_benchmark", "of_quantization", "of_sections", "of_training"]


def of_sections(*sections: str) -> Callable[[Config], dict[str, Any]]:
    """Return a function that takes these sections of a configuration as plain data."""

    def fingerprint(config: Config) -> dict[str, Any]:
        return {section: _section(config, section) for section in sections}

    return fingerprint


def _section(config: Config, name: str) -> dict[str, Any]:
    if name == "seed":
        return {"seed": config.runtime.seed}
    if name == "data":
        # Where the files lie is not what they hold, and training does not see test images; hashes are inputs.
        known = {key: value for key, value in _section(config, "all data").items() if key != "test_fraction"}
        kind, _, path = config.data.source.partition(":")
        if kind != "folder":
            return known
        return known | {"source": folder_name(Path(path))}
    if name == "all data":
        return {key: value for key, value in dataclasses.asdict(config.data).items() if key != "dir"}
    if name == "distill":
        # An option that the method has no use for counts as its default, or a control would be trained once for each.
        default = {key: getattr(DistillConfig, key) for key in METHODS[config.distill.method].unused}
        known = dataclasses.asdict(config.distill) | default
    else:
        known = dataclasses.asdict(getattr(config, name))
    # Manifests record options by their first names.
    first = {new: old for old, new in RENAMED.get(name, {}).items()}
    return {first.get(key, key): value for key, value in known.items()}


def of_training(section: str) -> Callable[[Config], dict[str, Any]]:
    """Return the key function of a training stage: its options, with what files of initial weights hold for paths."""

    def fingerprint(config: Config) -> dict[str, Any]:
        known = of_sections("data", section, "runtime")(config)
        if section == "teacher":
            known[section]["lr"] = _recorded_lr(config.teacher)
        hashes = [file_sha256(path) for path in getattr(config, section).weight_files if path.is_file()]
        if not hashes:
            return known
        return known | {section: known[section] | {"weights": "files"}, "weights_sha256": hashes}

    return fingerprint


def _recorded_lr(teacher: TeacherConfig) -> float | str:
    """Return the teacher's learning rate as manifests record it.

    Earlier versions divided it by ten for loaded weights, with a default of 0.1: that is what 0 means now for 128
    images per step. A rate that is not divided any more is another one. It stays 0 where the images decide the batch.
    """
    if not teacher.lr:
        return teacher.peak_lr(teacher.batch_size, loaded=False)
    return teacher.lr if teacher.weights == "none" else f"exactly {teacher.lr}"


def of_quantization(config: Config) -> dict[str, Any]:
    """Return the quantization's key: its options and the gate's limit, which decides whether the ladder is climbed."""
    return {**of_sections("quantize", "data", "seed")(config), "limit_pp": config.benchmark.limit_pp}


def of_benchmark(config: Config) -> dict[str, Any]:
    """Return the benchmark's key: its options and the machine that it measures."""
    from kdedge.benchmarks.host import host_record
    from kdedge.benchmarks.report.compare import others_sha256

    host = host_record()
    return {
        **of_sections("benchmark", "all data", "seed")(config),
        "host": {part: host[part] for part in ("cpu", "cores", "gpu", "onnxruntime", "providers")},
        "beside": others_sha256(config.benchmark.compare_with),
    }

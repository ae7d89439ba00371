"""Fingerprints: the part of the configuration that decides the result of a stage, as recorded in its manifest."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdedge.files import file_sha256
from kdedge.manifest import load_manifest
from kdedge.ownership import is_stage
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import RENAMED
from kdedge.pipeline.data.options import PATH_KINDS, DataConfig, without_query
from kdedge.pipeline.data.user_images import source_name
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.training.options import TeacherConfig

__all__ = ["of_benchmark", "of_quantization", "of_sections", "of_training"]

# Options that were added after published runs. At their default they are not recorded, so that those runs stay valid.
_ADDED: dict[str, dict[str, Any]] = {
    "teacher": {"augment": "light", "hard_epochs": 0},
    "distill": {
        "augment": "light",
        "ema": 0.0,
        "mix": 0.0,
        "more_teachers": "",
        "mean_of_flips": False,
        "prune": 0.0,
        "prune_by": "taylor",
    },
    "training": {"balance": "none"},
    "runtime": {"processes": 1},
    "benchmark": {"metric": "top1", "provider": "", "runtime": ""},
}


def of_sections(*sections: str) -> Callable[[Config], dict[str, Any]]:
    """Return a function from a configuration to these sections of it, JSON-ready."""

    def fingerprint(config: Config) -> dict[str, Any]:
        return {section: _section(config, section) for section in sections}

    return fingerprint


def _section(config: Config, name: str) -> dict[str, Any]:
    if name == "seed":
        return {"seed": config.runtime.seed}
    if name == "data":
        # Not the paths of the files, whose hashes are inputs, nor test_fraction: training does not see test images.
        known = {key: value for key, value in _section(config, "all data").items() if key != "test_fraction"}
        kind, _, path = known["source"].partition(":")
        if kind not in PATH_KINDS:
            return known
        return known | {"source": source_name(kind, Path(path))}
    if name == "all data":
        # Earlier versions had none of these options and did what their defaults do. The hash of the
        # data has the color.
        added = ("resize", "window", "stride", "layout", "rate", "groups")
        unnamed = {"dir", "color", *(key for key in added if getattr(config.data, key) == getattr(DataConfig, key))}
        known = {key: value for key, value in dataclasses.asdict(config.data).items() if key not in unnamed}
        return known | {"source": without_query(config.data.source)}
    if name == "distill":
        # Options that the method does not use have their default, so that changing them trains nothing again.
        default = {key: getattr(DistillConfig, key) for key in METHODS[config.distill.method].unused}
        known = dataclasses.asdict(config.distill) | default
    else:
        known = dataclasses.asdict(getattr(config, name))
    for key, default in _ADDED.get(name, {}).items():
        if known[key] == default:
            del known[key]
    # Manifests record options by their first names.
    first = {new: old for old, new in RENAMED.get(name, {}).items()}
    return {first.get(key, key): value for key, value in known.items()}


def of_training(section: str) -> Callable[[Config], dict[str, Any]]:
    """Return the fingerprint function of a training stage: its options, with hashes in place of weight files."""

    def fingerprint(config: Config) -> dict[str, Any]:
        known = of_sections("data", section, "runtime")(config)
        if shared := _section(config, "training"):
            known["training"] = shared
        if section == "teacher":
            known[section]["lr"] = _recorded_lr(config.teacher)
        elif "more_teachers" in known[section]:
            folders = [folder for folder in config.distill.further_teachers if is_stage(folder, "teacher")]
            known[section]["more_teachers"] = [load_manifest(folder)["outputs"] for folder in folders]
        hashes = [file_sha256(path) for path in getattr(config, section).weight_files if path.is_file()]
        if not hashes:
            return known
        return known | {section: known[section] | {"weights": "files"}, "weights_sha256": hashes}

    return fingerprint


def _recorded_lr(teacher: TeacherConfig) -> float | str:
    """Return the teacher's learning rate as recorded in manifests.

    Earlier versions divided the rate by ten for loaded weights and had a default of 0.1, which equals 0 now for 128
    images per step. The rate stays 0 if the images decide the batch size.
    """
    if not teacher.lr:
        return teacher.peak_lr(teacher.batch_size, loaded=False)
    return teacher.lr if teacher.weights == "none" else f"exactly {teacher.lr}"


def of_quantization(config: Config) -> dict[str, Any]:
    """Return the fingerprint of the quantization: its options, and the gate's limit and metric for the repair steps."""
    known = {**of_sections("quantize", "data", "seed")(config), "limit_pp": config.benchmark.limit_pp}
    return known if config.benchmark.metric == "top1" else known | {"metric": config.benchmark.metric}


def of_benchmark(config: Config) -> dict[str, Any]:
    """Return the fingerprint of the benchmark: its options and the machine."""
    from kdedge.benchmarks.host import host_record
    from kdedge.benchmarks.report.compare import others_sha256

    host = host_record()
    return {
        **of_sections("benchmark", "all data", "seed")(config),
        "host": {part: host[part] for part in ("cpu", "cores", "gpu", "onnxruntime", "providers")},
        "beside": others_sha256(config.benchmark.compare_with),
    }

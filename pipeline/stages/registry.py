"""The stages in order, with their inputs and their fingerprints.

    data -> teacher -> distill -> export -> quantize -> benchmark -> bundle

The module of a stage is imported when it is checked or runs, so that reading a finished run requires no PyTorch.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.manifest import load_manifest
from kdedge.ownership import is_stage
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import data_sha256
from kdedge.pipeline.run_dir import StageSpec
from kdedge.pipeline.stages.fingerprint import of_benchmark, of_quantization, of_sections, of_training
from kdedge.pipeline.training import distributed

__all__ = ["STAGES", "TRAINING_STAGES", "stages_of"]

TRAINING_STAGES = frozenset({"teacher", "distill"})
_TRAININGS = frozenset(f"{name}.run" for name in TRAINING_STAGES)
_ONNX = ("onnx", "onnxruntime")


def _lazy(target: str) -> Callable[..., Any]:
    """Return a function that imports ``stage.function`` at its first call; a training runs in all processes."""
    module, _, function = target.partition(".")

    def call(*arguments: Any) -> Any:
        stage = getattr(importlib.import_module(f"kdedge.pipeline.stages.{module}"), function)
        return distributed.train_together(stage, *arguments) if target in _TRAININGS else stage(*arguments)

    return call


def _data(*parts: str) -> Callable[[Config], dict[str, str]]:
    return lambda config: {part: data_sha256(config.data, part) for part in parts}


STAGES = {
    spec.name: spec
    for spec in (
        StageSpec(
            "teacher",
            work="fine-tune the teacher on the training data",
            options=("preset", "data", "teacher", "training", "runtime"),
            reads=(),
            check=_lazy("teacher.check"),
            check_data=_lazy("teacher.check_data"),
            run=_lazy("teacher.run"),
            fingerprint=of_training("teacher"),
            data=_data("train"),
            packages=("torch",),
            version=5,
        ),
        StageSpec(
            "distill",
            work="train the student with the teacher",
            options=("data", "distill", "training", "runtime"),
            reads=("teacher",),
            check=_lazy("distill.check"),
            check_data=_lazy("distill.check_data"),
            run=_lazy("distill.run"),
            fingerprint=of_training("distill"),
            data=_data("train"),
            packages=("torch",),
            version=4,
        ),
        StageSpec(
            "export",
            work="write ONNX and compare it with PyTorch",
            options=("export",),
            reads=("distill",),
            run=_lazy("export.run"),
            fingerprint=of_sections("export"),
            data=_data(),
            packages=_ONNX,
        ),
        StageSpec(
            "quantize",
            work="search for an INT8 format",
            options=("data", "quantize"),
            reads=("export",),
            check_data=_lazy("same_images.check_data"),
            run=_lazy("quantize.run"),
            fingerprint=of_quantization,
            data=_data("train"),
            packages=_ONNX,
            version=3,
        ),
        StageSpec(
            "benchmark",
            work="measure accuracy, latency and memory, and decide the gate",
            options=("data", "benchmark"),
            reads=("teacher", "distill", "export", "quantize"),
            check=_lazy("benchmark.check"),
            check_data=_lazy("benchmark.check_data"),
            run=_lazy("benchmark.run"),
            fingerprint=of_benchmark,
            data=_data("test"),
        ),
        StageSpec(
            "bundle",
            work="write the folder to ship, if the gate passed",
            options=("data", "bundle"),
            reads=("teacher", "distill", "export", "quantize", "benchmark"),
            check_data=_lazy("same_images.check_data"),
            run=_lazy("bundle.run"),
            fingerprint=of_sections("bundle", "all data", "seed"),
            data=_data("train"),
            version=2,
        ),
    )
}


def stages_of(names: tuple[str, ...], run_dir: Path) -> list[StageSpec]:
    """Return stages of a run directory; if it has a model that kdedge did not train, they read no training.

    Raises:
        InputError: It has such a model, and a stage would train another one.
    """
    adopted = is_stage(run_dir / "export", "export") and load_manifest(run_dir / "export")["facts"].get("adopted")
    if not adopted:
        return [STAGES[name] for name in names]
    if training := [name for name in names if name in TRAINING_STAGES | {"export"}]:
        raise InputError(
            f"{run_dir} has {adopted}, which kdedge did not train: it has no stage {training[0]}", "give another --out"
        )
    return [
        replace(spec, reads=tuple(before for before in spec.reads if before not in TRAINING_STAGES))
        for spec in (STAGES[name] for name in names)
    ]

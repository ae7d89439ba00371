"""The quantize stage: quantizes the exported student to INT8, with choices on its validation images.

``kdedge quantize --out RUN`` reads ``RUN/export`` and writes ``RUN/quantize``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.benchmarks.session import check_fits, open_model
from kdedge.export.quantize.model import quantize_model
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import opened, training_images

__all__ = ["run"]


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Quantize ``inputs["export"]/student.onnx``; see `kdedge.export.quantize.model.quantize_model`.

    Raises:
        InputError: The model is damaged, was not exported by kdedge, or has other classes or another input than the
            data set.
        StageError: onnxruntime would run a part of every INT8 model in float.
    """
    path, dataset = inputs["export"] / "student.onnx", opened(config.data)
    check_fits(open_model(path), dataset.class_names, dataset.spec)
    train, val = training_images(dataset, config.data)
    return quantize_model(
        path,
        train,
        val,
        config.quantize,
        out_dir,
        limit_pp=config.benchmark.limit_pp,
        seed=config.runtime.seed,
        balanced=config.benchmark.metric == "balanced",
    )

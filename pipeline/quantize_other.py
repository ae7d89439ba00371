"""Quantizes an ONNX classifier that kdedge did not train, and decides the gate on the test images.

``RUN/export`` gets the model rewritten for pixels and any batch, ``RUN/quantize`` the INT8 model with its search, and
``RUN/gate.json`` the verdict. If it is not accepted, the bundle of an earlier command moves to ``RUN/bundle.previous``.
`measure_other` then runs the later stages, which are the same as for a student.
"""

from pathlib import Path
from typing import Any

from kdedge.benchmarks.input_adapter import Classifier, Preprocessing
from kdedge.benchmarks.paired_gate import gate_pairs
from kdedge.benchmarks.prediction_files import Pairs
from kdedge.benchmarks.session import open_model, run_model
from kdedge.errors import GateError, InputError
from kdedge.export.bundle.build import check_gate
from kdedge.files import file_sha256, write_json
from kdedge.machine import usable_cores
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import check_outside, opened
from kdedge.pipeline.run import run_stages
from kdedge.pipeline.run_dir import StageSpec, lock_run, run_stage
from kdedge.pipeline.stages import bundle
from kdedge.pipeline.stages.benchmark_setup import check_measurable
from kdedge.progress import log

__all__ = ["GATE_NAME", "measure_other", "quantize_other"]

GATE_NAME = "gate.json"
_TRAINED = ("teacher", "distill")


def quantize_other(
    model: Classifier, preprocessing: Preprocessing, config: Config, run_dir: Path, *, force: bool, refresh: bool
) -> dict[str, Any]:
    """Quantize a classifier into a run directory.

    Args:
        model: The classifier.
        preprocessing: From pixels to its input, if it takes floats. ``config.data`` has how images become square.
        config: The configuration, with the image size of the model.
        run_dir: The run directory.
        force: Run again even if the result is up to date.
        refresh: Run again if another version made the result.

    Returns:
        The result of the gate on the test images.

    Raises:
        InputError: The model and the images differ, the model cannot be rewritten, or the directory has a training.
        StageError: No layer of the INT8 model would run as integers.
    """
    from kdedge.export.adopt import adopt_model, weight_files

    dataset = opened(config.data)

    def check() -> None:
        check_outside(dataset, run_dir)
        check_measurable(config.benchmark, to_convert=True)
        if any((run_dir / stage).exists() for stage in _TRAINED):
            raise InputError(f"{run_dir} has a student that kdedge trained", "give another --out")
        for index, (ours, theirs) in enumerate(zip(model.class_names or (), dataset.class_names, strict=False)):
            if ours != theirs:
                raise InputError(
                    f"{model.path} calls class {index} {ours!r}, the data set {theirs!r}",
                    "use images of the classes that the model was trained on",
                )

    def adopt(config: Config, inputs: Any, out_dir: Path) -> dict[str, Any]:
        target, mode = out_dir / "student.onnx", config.data.resize
        metrics = adopt_model(model, preprocessing, dataset.class_names, target, resize_mode=mode)
        difference = f"largest logit difference {metrics['max_abs_diff']:.1e}"
        log(f"export: {model.path.name}, opset {metrics['opset']}, {difference}")
        return metrics

    numbers = {
        "scale": preprocessing.scale,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    weights = [file_sha256(path) for path in weight_files(model.path)]
    fingerprint = {
        "model": file_sha256(model.path),
        **({"weights": weights} if weights else {}),
        "layout": model.layout,
        "image_size": model.image_size,
        "classes": list(dataset.class_names),
        "resize": config.data.resize,
        **(numbers if model.takes_floats else {}),
    }
    rewrite = StageSpec(
        "export",
        work="rewrite the model for pixels and any batch",
        reads=(),
        run=adopt,
        fingerprint=lambda config: fingerprint,
        data=lambda config: {},
        packages=("onnx", "onnxruntime"),
    )
    with lock_run(run_dir, check):
        run_stage(rewrite, config, run_dir, force=force, refresh=refresh)
        run_stages(("quantize",), config, run_dir, force=force, refresh=refresh)
        test = dataset.test()
        fp32, int8 = (
            run_model(open_model(path, threads=usable_cores()), test.images).argmax(1)
            for path in (run_dir / "export" / "student.onnx", run_dir / "quantize" / "student.int8.onnx")
        )
        pairs = Pairs(tuple(dataset.class_names), test.labels, fp32, int8, test.groups)
        result = gate_pairs(pairs, config.benchmark.limit_pp, balanced=config.benchmark.metric == "balanced")
        write_json(run_dir / GATE_NAME, result)
        try:
            check_gate(result, allow_undecided=config.bundle.allow_undecided)
        except GateError:
            bundle.set_aside(run_dir)
    return result


def measure_other(config: Config, run_dir: Path, *, force: bool, refresh: bool) -> None:
    """Measure the models of `quantize_other` and write the bundle; the arguments are those of `quantize_other`.

    Raises:
        GateError: The gate did not pass.
        StageError: The bundle cannot be written, or a CPU cannot be emulated.
    """
    with lock_run(run_dir):
        run_stages(("benchmark", "bundle"), config, run_dir, force=force, refresh=refresh)

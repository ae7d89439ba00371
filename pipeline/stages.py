"""The stages in their order: what each reads, and what decides its result.

    data -> teacher -> distill -> export -> quantize -> benchmark -> bundle

A stage's code is imported when it runs, so that looking at a finished run needs no PyTorch.
"""

import dataclasses
import importlib
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.artifacts import StageSpec, run_stage, why_rerun
from pipeline.config import Config, DataConfig, DistillConfig, TeacherConfig
from pipeline.configure import build_config
from pipeline.distill.methods import METHODS
from pipeline.errors import GateError, InputError
from pipeline.files import file_sha256, read_json, write_json
from pipeline.parsing import parse_emulated

__all__ = ["STAGES", "recorded_config", "run_stages"]

CONFIG = "config.json"
TRAINING_STAGES = frozenset({"teacher", "distill"})


def run_stages(names: tuple[str, ...], config: Config, run_dir: Path, *, force: bool = False) -> bool:
    """Run stages in order in a locked run directory; return whether any of them ran.

    Raises:
        KdedgeError: The first stage that fails.
    """
    for name in names:
        STAGES[name].data(config)  # bad data must not replace the configuration of a good run
    if "benchmark" in names:
        _warn_duplicates(config.data)
    emulated = parse_emulated(config.benchmark.emulate, "--emulate")
    if "benchmark" in names and emulated:
        from export.emulate import check_emulators

        check_emulators(emulated)  # before hours of training
    if "teacher" in names:
        from pipeline.data import open_dataset
        from pipeline.models.initial_weights import check_start

        check_start(config, len(open_dataset(config.data).class_names))  # likewise
    if "distill" in names and config.distill.weights:
        from pipeline.weights import load_weights

        for path in config.distill.weight_files:
            load_weights(path)  # likewise
    if "benchmark" in names and config.benchmark.beside:
        _check_beside(config, run_dir)  # likewise
    if not TRAINING_STAGES.isdisjoint(names):
        from pipeline.runtime import resolve

        earlier = recorded_config(run_dir).get("runtime")
        config = dataclasses.replace(config, runtime=resolve(config.runtime, earlier))
        if config.runtime.device == "cuda":
            _check_gpu(names, config, run_dir, force=force)  # likewise
    write_json(run_dir / CONFIG, dataclasses.asdict(config))
    try:
        # A list, not a generator: every stage must run, also after one that was skipped.
        return any([run_stage(STAGES[name], config, run_dir, force=force) for name in names])
    except GateError:
        # The model that the old bundle holds is not the one that was just refused.
        shutil.rmtree(run_dir / "bundle", ignore_errors=True)
        raise


def _warn_duplicates(data: DataConfig) -> None:
    """Warn of test images that were trained on and of images in two classes; the hashes of all files are known."""
    from pipeline.data import open_dataset
    from pipeline.data.folder import Folder

    dataset = open_dataset(data)
    if isinstance(dataset, Folder):
        dataset.warn_duplicates()


def _check_gpu(names: tuple[str, ...], config: Config, run_dir: Path, *, force: bool) -> None:
    """Refuse to train on a GPU that is not there."""
    from pipeline.runtime import check_cuda

    if any(force or why_rerun(STAGES[name], config, run_dir) for name in names if name in TRAINING_STAGES):
        check_cuda()


def recorded_config(run_dir: Path) -> dict[str, Any]:
    """Return the configuration that a run directory was last used with (empty: none).

    Raises:
        InputError: The file is damaged.
    """
    path = run_dir / CONFIG
    if not path.exists():
        return {}
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}", f"delete it and give the options again: rm {path}") from error
    try:
        build_config(config)
    except (AttributeError, InputError) as error:
        raise InputError(
            f"{path} is not a kdedge configuration: {error}", f"delete it and give the options again: rm {path}"
        ) from error
    recorded: dict[str, Any] = config
    return recorded


def _lazy(target: str) -> Callable[[Config, Mapping[str, Path], Path], dict[str, Any]]:
    """Return a stage function that is imported on its first call; ``target`` is ``module:function``."""
    module, _, function = target.partition(":")

    def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
        facts: dict[str, Any] = getattr(importlib.import_module(module), function)(config, inputs, out_dir)
        return facts

    return run


def _key(*sections: str) -> Callable[[Config], dict[str, Any]]:
    """Return a function that takes these sections of a configuration as plain data."""

    def key(config: Config) -> dict[str, Any]:
        return {section: _section(config, section) for section in sections}

    return key


def _section(config: Config, name: str) -> dict[str, Any]:
    if name == "seed":
        return {"seed": config.runtime.seed}
    if name == "data":
        # Where the files lie is not what they hold, and training does not see test images; hashes are inputs.
        known = {key: value for key, value in _section(config, "all data").items() if key != "test_fraction"}
        kind, _, path = config.data.source.partition(":")
        if kind != "folder":
            return known
        from pipeline.data.folder import folder_name

        return known | {"source": folder_name(Path(path))}
    if name == "all data":
        return {key: value for key, value in dataclasses.asdict(config.data).items() if key != "dir"}
    if name == "distill":
        # An option that the method has no use for counts as its default, or a control would be trained once for each.
        default = {key: getattr(DistillConfig, key) for key in METHODS[config.distill.method].unused}
        return dataclasses.asdict(config.distill) | default
    return dataclasses.asdict(getattr(config, name))


def _training_key(section: str) -> Callable[[Config], dict[str, Any]]:
    """Return the key function of a training stage: its options, with what files of initial weights hold for paths."""

    def key(config: Config) -> dict[str, Any]:
        known = _key("data", section, "runtime")(config)
        if section == "teacher":
            known[section]["lr"] = _recorded_lr(config.teacher)
        hashes = [file_sha256(path) for path in getattr(config, section).weight_files if path.is_file()]
        if not hashes:
            return known
        return known | {section: known[section] | {"weights": "files"}, "weights_sha256": hashes}

    return key


def _recorded_lr(teacher: TeacherConfig) -> float | str:
    """Return the teacher's learning rate as manifests record it.

    Earlier versions divided it by ten for loaded weights, with a default of 0.1: that is what 0 means now. A rate that
    is not divided any more is another one.
    """
    if not teacher.lr:
        return 0.1
    return teacher.lr if teacher.weights == "none" else f"exactly {teacher.lr}"


def _quantize_key(config: Config) -> dict[str, Any]:
    """Return the quantization's key: its options and the gate's limit, which decides whether the ladder is climbed."""
    return {**_key("quantize", "data", "seed")(config), "limit_pp": config.benchmark.limit_pp}


def _host_key(config: Config) -> dict[str, Any]:
    """Return the benchmark's key: its options and the machine that it measures."""
    from benchmarks.beside import beside_sha256
    from benchmarks.host import host_record

    host = host_record()
    return {
        **_key("benchmark", "all data", "seed")(config),
        "host": {part: host[part] for part in ("cpu", "cores", "gpu", "onnxruntime", "providers")},
        "beside": beside_sha256(config.benchmark.beside),
    }


def _check_beside(config: Config, run_dir: Path) -> None:
    """Refuse reports that cannot be shown beside that of this run."""
    from benchmarks.beside import check_beside, load_beside
    from benchmarks.host import host_record
    from benchmarks.report_file import find_report
    from pipeline.data import open_dataset

    others = load_beside(config.benchmark.beside)
    for name in others:
        # Its own report is another one after every benchmark, which would never be up to date.
        if find_report(Path(name)).resolve().parent.parent == run_dir.resolve():
            raise InputError(f"--beside {name} is this run itself", "name only the others")
    images = {
        "images_sha256": _data_sha256(config.data, "test"),
        "image_size": config.data.image_size,
    }
    check_beside(others, host_record(), open_dataset(config.data).name, images)


@cache
def _data_sha256(data: DataConfig, part: str) -> str:
    from pipeline.data import open_dataset

    dataset = open_dataset(data)
    return dataset.train_sha256() if part == "train" else dataset.test_sha256()


def _data(*parts: str) -> Callable[[Config], dict[str, str]]:
    return lambda config: {part: _data_sha256(config.data, part) for part in parts}


STAGES = {
    spec.name: spec
    for spec in (
        StageSpec("teacher", (), _lazy("pipeline.teacher:run"), _training_key("teacher"), _data("train")),
        StageSpec(
            "distill", ("teacher",), _lazy("pipeline.distill.stage:run"), _training_key("distill"), _data("train"),
        ),
        StageSpec("export", ("distill",), _lazy("export.onnx_export:run"), _key("export"), _data()),
        StageSpec(
            "quantize", ("export",), _lazy("export.quantize:run"), _quantize_key, _data("train")
        ),
        StageSpec(
            "benchmark", ("teacher", "distill", "export", "quantize"), _lazy("pipeline.evaluate:run"), _host_key,
            _data("test"),
        ),
        StageSpec(
            "bundle", ("teacher", "distill", "export", "quantize", "benchmark"), _lazy("export.bundle:run"),
            _key("bundle", "all data", "seed"), _data("train"),
        ),
    )
}  # fmt: skip

"""The stages in their order: what each reads, and what decides its result.

    data -> teacher -> distill -> export -> quantize -> benchmark -> bundle

A stage's code is imported when it runs, so that looking at a finished run needs no PyTorch.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import (
    StageSpec,
    check_finished,
    clean_up,
    load_manifest,
    run_stage,
    unfinished_config,
    why_rerun,
)
from pipeline.config import Config, DataConfig, DistillConfig, TeacherConfig
from pipeline.configure import build_config
from pipeline.distill.methods import METHODS
from pipeline.errors import GateError, InputError
from pipeline.files import file_sha256, load_json, read_json, write_json
from pipeline.ownership import MANIFEST, check_owned, holds_nothing, is_stage, not_ours, remove_marked
from pipeline.parsing import parse_cpus, parse_emulated
from pipeline.progress import warn

if TYPE_CHECKING:
    from pipeline.data import Dataset

__all__ = [
    "STAGES",
    "check_measurable",
    "check_outside_data",
    "check_stages",
    "recorded_config",
    "recorded_runtime",
    "run_stages",
]

CONFIG = "config.json"
PREVIOUS_BUNDLE = "bundle.previous"
TRAINING_STAGES = frozenset({"teacher", "distill"})
# Of which stages a section of the configuration holds options.
_OPTIONS = {
    "teacher": ("preset", "data", "teacher", "runtime"),
    "distill": ("data", "distill", "runtime"),
    "export": ("export",),
    "quantize": ("data", "quantize"),
    "benchmark": ("data", "benchmark"),
    "bundle": ("data", "bundle"),
}


def check_stages(names: tuple[str, ...], config: Config, run_dir: Path) -> None:
    """Check what can be known before stages run, the cheap first; write, create and time nothing.

    Raises:
        InputError: A file or folder in the way is not kdedge's; a stage that is read is missing; an option does not
            fit this machine, the images or the other options; the data set or another file is bad.
        StageError: A CPU cannot be emulated here, or the data set cannot be fetched.
    """
    check_owned(run_dir, names)
    _check_previous(run_dir)
    recorded = recorded_config(run_dir)
    for name in names:
        for before in STAGES[name].reads:
            if before not in names:
                check_finished(run_dir / before)
    if not TRAINING_STAGES.isdisjoint(names):
        from pipeline.runtime import check_threads

        check_threads(config.runtime.threads, recorded.get("runtime"))
    if "teacher" in names:
        _check_teacher(config, run_dir)
    if "distill" in names and config.distill.weights:
        from pipeline.weights import load_weights

        for path in config.distill.weight_files:
            load_weights(path)
    if "benchmark" in names:
        check_measurable(config)
    for name in names:
        STAGES[name].data(config)
    check_outside_data(config.data, run_dir)
    if "teacher" in names:
        from pipeline.models.initial_weights import check_start

        check_start(config, len(_open(config.data).class_names))
    if "benchmark" in names:
        _warn_duplicates(config.data)
        if config.benchmark.beside:
            _check_beside(config, run_dir)


def run_stages(
    names: tuple[str, ...],
    config: Config,
    run_dir: Path,
    *,
    force: bool = False,
    refresh: bool = False,
    checked: bool = False,
) -> bool:
    """Run stages in order in a locked run directory.

    Args:
        names: Names of the stages.
        config: The configuration.
        run_dir: The run directory.
        force: Run them again even if they are up to date.
        refresh: Run those again that were made with other versions of the stage or of a package that decides a result.
        checked: Whether `check_stages` was called already.

    Returns:
        Whether any of them ran.

    Raises:
        KdedgeError: A check of `check_stages` fails, or a stage.
    """
    if not checked:
        check_stages(names, config, run_dir)
    if not TRAINING_STAGES.isdisjoint(names):
        from pipeline.runtime import resolve

        config = dataclasses.replace(config, runtime=resolve(config.runtime, recorded_runtime(run_dir)))
        if config.runtime.device == "cuda":
            _check_gpu(names, config, run_dir, force=force)
    clean_up(run_dir, STAGES)
    any_ran = False
    try:
        for name in names:
            any_ran |= run_stage(STAGES[name], config, run_dir, force=force, refresh=refresh)
            _record(config, run_dir, name)
        if "benchmark" in names:
            _judge_bundle(config, run_dir)
    except GateError:
        _set_bundle_aside(run_dir)
        raise
    return any_ran


def _check_teacher(config: Config, run_dir: Path) -> None:
    """Refuse a teacher that cannot be built, or whose images would be blank."""
    settings, size = config.teacher, config.data.image_size
    if settings.cutout > size:
        raise InputError(
            f"--teacher-cutout {settings.cutout} is larger than the images, which have {size} x {size} pixels",
            "give a smaller one; 8 or 16 are usual for images of 32 pixels",
        )
    finished = is_stage(run_dir / "teacher", "teacher") and load_manifest(run_dir / "teacher")["config"]
    if not finished or finished["teacher"]["arch"] != settings.arch:  # importing torchvision takes seconds
        from pipeline.models.teacher import check_arch

        check_arch(settings.arch)


def check_measurable(config: Config) -> None:
    """Refuse what cannot be measured on this machine.

    Raises:
        InputError: This process may not use the CPUs of ``--affinity``, or the system cannot limit memory.
        StageError: A CPU cannot be emulated here.
    """
    from benchmarks.affinity import check_cpus
    from benchmarks.memory import check_limit

    settings = config.benchmark
    check_cpus(parse_cpus(settings.affinity, "--affinity"))
    check_limit(settings.memory_limit)
    if emulated := parse_emulated(settings.emulate, "--emulate"):
        from export.emulate import check_emulators

        check_emulators(emulated)


def check_outside_data(data: DataConfig, run_dir: Path) -> None:
    """Refuse a run directory that the next command would take for a class of the data set.

    Raises:
        InputError: It is inside a folder of class folders, or the data set is bad.
    """
    from pipeline.data.folder import Folder

    dataset = _open(data)
    if not isinstance(dataset, Folder):
        return
    # Next to a train and a test folder, which hold the classes, other folders are ignored.
    parts = {
        item.path.parent.parent.resolve() for item in (*dataset.train_items, *dataset.val_items, *dataset.test_items)
    }
    inside = parts if len(parts) > 1 else {dataset.root.resolve()}
    if any(run_dir.resolve().is_relative_to(part) for part in inside):
        raise InputError(
            f"--out {run_dir} is inside the data folder {dataset.root}, where it would become a class",
            "give an --out outside of it",
        )


def _warn_duplicates(data: DataConfig) -> None:
    """Warn of test images that were trained on and of images in two classes; the hashes of all files are known."""
    from pipeline.data.folder import Folder

    dataset = _open(data)
    if isinstance(dataset, Folder):
        dataset.warn_duplicates()


def _check_gpu(names: tuple[str, ...], config: Config, run_dir: Path, *, force: bool) -> None:
    """Refuse to train on a GPU that is not there."""
    from pipeline.runtime import check_cuda

    if any(force or why_rerun(STAGES[name], config, run_dir) for name in names if name in TRAINING_STAGES):
        check_cuda()


def _judge_bundle(config: Config, run_dir: Path) -> None:
    """Set a bundle of an earlier run aside if the gate of this report lets no bundle through.

    Raises:
        InputError: The report is damaged.
    """
    from export.bundle import check_gate

    bundle, report = run_dir / "bundle", run_dir / "benchmark" / "report.json"
    if not is_stage(bundle, "bundle"):
        return
    if load_manifest(bundle)["inputs"].get("benchmark/report.json") == file_sha256(report):
        return
    try:
        check_gate(load_json(report, ("accuracy", "gate")), allow_undecided=config.bundle.allow_undecided)
    except GateError:
        _set_bundle_aside(run_dir)


def _check_previous(run_dir: Path) -> None:
    """Refuse to put a bundle in the place of a folder that is not kdedge's."""
    previous = run_dir / PREVIOUS_BUNDLE
    if not holds_nothing(previous) and not is_stage(previous, "bundle"):
        raise not_ours(previous, f"it has no {MANIFEST} of the stage bundle")


def _set_bundle_aside(run_dir: Path) -> None:
    """Move the bundle of an earlier run away from a report that refuses this run's model.

    One that passed its gate is not replaced by one that did not.
    """
    bundle, previous = run_dir / "bundle", run_dir / PREVIOUS_BUNDLE
    if not is_stage(bundle, "bundle"):
        return
    found = f"{bundle} is of an earlier run, not of the model that was refused"
    if is_stage(previous, "bundle"):
        if _passed(previous) and not _passed(bundle):
            remove_marked(bundle, MANIFEST)
            warn(f"{found}: removed; the last one that passed its gate is in {previous}")
            return
        remove_marked(previous, MANIFEST)
    elif previous.exists():
        previous.rmdir()
    bundle.rename(previous)
    warn(f"{found}: moved to {previous}")


def _passed(bundle: Path) -> bool:
    return load_manifest(bundle)["facts"].get("passed") is True


def recorded_config(run_dir: Path) -> dict[str, Any]:
    """Return the configuration with which the stages of a run directory were made (empty: none is recorded).

    Raises:
        InputError: The file is damaged, or not kdedge's.
    """
    path = run_dir / CONFIG
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        config = read_json(path)
        build_config(config)
    except (AttributeError, InputError, OSError, TypeError, ValueError) as error:
        raise not_ours(path, f"it is not a kdedge configuration ({str(error).splitlines()[0]})") from error
    if not config:
        raise not_ours(path, "it is an empty object")
    recorded: dict[str, Any] = config
    return recorded


def recorded_runtime(run_dir: Path) -> dict[str, Any] | None:
    """Return the resolved runtime of the finished stages, else of unfinished work, which goes on as it began."""
    for begun in (recorded_config(run_dir), *(unfinished_config(run_dir, name) for name in sorted(TRAINING_STAGES))):
        if "runtime" in begun:
            runtime: dict[str, Any] = begun["runtime"]
            return runtime
    return None


def _record(config: Config, run_dir: Path, made: str) -> None:
    """Record the options with which a stage was made; those of other finished stages stay as they are."""
    recorded, values = recorded_config(run_dir), dataclasses.asdict(config)
    for section in values.keys() & recorded.keys():
        decided = [name for name, sections in _OPTIONS.items() if section in sections]
        if made not in decided and any(is_stage(run_dir / name, name) for name in decided):
            values[section] = recorded[section]
    if values != recorded:
        write_json(run_dir / CONFIG, values)


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

    Earlier versions divided it by ten for loaded weights, with a default of 0.1: that is what 0 means now for 128
    images per step. A rate that is not divided any more is another one. It stays 0 where the images decide the batch.
    """
    if not teacher.lr:
        return teacher.peak_lr(teacher.batch_size, loaded=False)
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

    others = load_beside(config.benchmark.beside)
    for name in others:
        # Its own report is another one after every benchmark, which would never be up to date.
        if find_report(Path(name)).resolve().parent.parent == run_dir.resolve():
            raise InputError(f"--beside {name} is this run itself", "name only the others")
    images = {
        "images_sha256": _data_sha256(config.data, "test"),
        "image_size": config.data.image_size,
    }
    check_beside(others, host_record(), _open(config.data).name, images)


def _open(data: DataConfig) -> "Dataset":
    """Open a data set once per process: the files of a large one take a while to list."""
    return _opened(data, Path.cwd())


@cache
def _opened(data: DataConfig, _: Path) -> "Dataset":
    from pipeline.data import open_dataset

    return open_dataset(data)


def _data_sha256(data: DataConfig, part: str) -> str:
    return _hashed(data, part, Path.cwd())


@cache
def _hashed(data: DataConfig, part: str, _: Path) -> str:
    dataset = _open(data)
    return dataset.train_sha256() if part == "train" else dataset.test_sha256()


def _data(*parts: str) -> Callable[[Config], dict[str, str]]:
    return lambda config: {part: _data_sha256(config.data, part) for part in parts}


_ONNX = ("onnx", "onnxruntime")

# The version of a stage is raised when the same options and inputs give another result than before.
STAGES = {
    spec.name: spec
    for spec in (
        StageSpec(
            "teacher", (), _lazy("pipeline.teacher:run"), _training_key("teacher"), _data("train"), ("torch",),
            work="fine-tune the teacher on the training images",
        ),
        StageSpec(
            "distill", ("teacher",), _lazy("pipeline.distill.stage:run"), _training_key("distill"), _data("train"),
            ("torch",), work="train the student with the teacher",
        ),
        StageSpec(
            "export", ("distill",), _lazy("export.onnx_export:run"), _key("export"), _data(), _ONNX,
            work="write ONNX and compare it with PyTorch",
        ),
        StageSpec(
            "quantize", ("export",), _lazy("export.quantize:run"), _quantize_key, _data("train"), _ONNX,
            work="search for an INT8 format",
        ),
        StageSpec(
            "benchmark", ("teacher", "distill", "export", "quantize"), _lazy("pipeline.evaluate:run"), _host_key,
            _data("test"), work="measure accuracy, latency and memory, and decide the gate",
        ),
        StageSpec(
            "bundle", ("teacher", "distill", "export", "quantize", "benchmark"), _lazy("export.bundle:run"),
            _key("bundle", "all data", "seed"), _data("train"), work="write the folder to ship, if the gate passed",
        ),
    )
}  # fmt: skip

"""The benchmark stage of a run: passes the models and the metrics of earlier stages to `kdedge.benchmarks.measure`.

`benchmarks` imports no PyTorch; if PyTorch is installed, this module scores the PyTorch models on the same images.

    kdedge benchmark --out artifacts/run
"""

import shlex
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.candidate import Candidate
from kdedge.benchmarks.grouped import FEWEST_GROUPS, sampling_of_sizes
from kdedge.benchmarks.host import host_record
from kdedge.benchmarks.measure import run_benchmark
from kdedge.benchmarks.options import parse_runtimes
from kdedge.benchmarks.report.compare import check_comparable, load_others
from kdedge.benchmarks.report.file import find_report
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.dataset import Dataset, Split
from kdedge.errors import InputError
from kdedge.export.bundle.contents import RUNTIMES_FOLDER
from kdedge.export.c99.network import read_network
from kdedge.export.c99.source import c_sizes
from kdedge.export.runtimes.registry import RUNTIMES
from kdedge.export.runtimes.runtime import convert_student
from kdedge.files import load_json
from kdedge.manifest import load_manifest
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.shareable import as_flags, cuts_paths
from kdedge.pipeline.data.items import groups_of
from kdedge.pipeline.data.sources import data_sha256, opened, training_images
from kdedge.pipeline.data.user_images import UserImages
from kdedge.pipeline.data.windows.dataset import Windows
from kdedge.pipeline.stages.benchmark_setup import check_measurable, emulation
from kdedge.pipeline.stages.registry import STAGES
from kdedge.pipeline.training.log import read_log
from kdedge.progress import warn_once

if TYPE_CHECKING:
    import torch

__all__ = ["check", "check_data", "run"]


def check(config: Config, run_dir: Path) -> None:
    """Refuse settings that this machine cannot measure; see `check_measurable`."""
    check_measurable(config.benchmark, to_convert=True)


def check_data(config: Config, run_dir: Path, names: Collection[str]) -> None:
    """Warn of duplicates and too few groups among the test images; refuse reports that no comparison can use.

    Raises:
        InputError: A report of ``--compare-with`` is missing, of this run, of another host or of other test images.
    """
    dataset = opened(config.data)
    if isinstance(dataset, UserImages):
        dataset.warn_duplicates()  # the hashes of all files are known
        _warn_few_groups(dataset, groups_of(dataset.test_items))
    if isinstance(dataset, Windows):
        dataset.warn_duplicates()
        _warn_few_groups(dataset, dataset.parts["test"].groups)
    if config.benchmark.compare_with:
        _check_others(config, run_dir)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Measure accuracy and latency on the test images and write the report.

    No other stage reads test images.
    """
    facts = _run_facts(config, inputs) | {"c": _c_sizes(inputs["quantize"] / "student.int8.onnx")}
    if _made_with(config, inputs):
        facts["run"]["commands"] = [shlex.join(["kdedge", "run-all", *as_flags(config)])]
        facts["run"]["commands_lack_paths"] = cuts_paths(config)
    images_sha256 = data_sha256(config.data, "test")
    report = run_benchmark(
        config.benchmark,
        inputs["export"] / "student.onnx",
        inputs["quantize"] / "student.int8.onnx",
        opened(config.data),
        images_sha256=images_sha256,
        run_facts=facts,
        torch_top1=_TorchScores(inputs, images_sha256) if "teacher" in inputs and find_spec("torch") else None,
        emulate=emulation(config.benchmark),
        runtimes=_converted(config, inputs, out_dir / RUNTIMES_FOLDER),
        out_dir=out_dir,
    )
    return {key: report[key] for key in ("accuracy", "gate", "size")}


def _converted(config: Config, inputs: Mapping[str, Path], folder: Path) -> dict[Candidate, dict[str, Any]]:
    """Convert the student for the runtimes that were asked for, with the calibration images of its INT8 model."""
    names = parse_runtimes(config.benchmark.runtime)
    if not names:
        return {}
    folder.mkdir()
    train, _ = training_images(opened(config.data), config.data)
    count = load_json(inputs["quantize"] / "candidates.json", ("calibration_images",))["calibration_images"]
    calibration = train.images[stratified_sample(train.labels, count, config.runtime.seed)]
    found: dict[Candidate, dict[str, Any]] = {}
    for name in names:
        found |= convert_student(RUNTIMES[name], inputs["export"] / "student.onnx", calibration, folder)
    return found


def _c_sizes(model: Path) -> dict[str, int] | None:
    """Return the bytes of a model as C code; None if `kdedge export-c` does not support it."""
    try:
        return c_sizes(read_network(model))
    except InputError:
        return None


def _run_facts(config: Config, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Return the report's sections on the earlier stages: run, teacher, student, training and quantization."""
    manifests = {stage: load_manifest(directory) for stage, directory in inputs.items()}
    origin = _trained(manifests, inputs) if "distill" in inputs else _adopted(manifests)
    return origin | {
        "run": {
            "preset": config.preset,
            "wall_s": round(sum(manifest["wall_s"] for manifest in manifests.values()), 1),
            "stage_wall_s": {stage: manifest["wall_s"] for stage, manifest in manifests.items()},
            "peak_rss_mb": max(manifest.get("peak_rss_mb") or 0 for manifest in manifests.values()) or None,
            "stage_commits": {stage: manifest["commit"] for stage, manifest in manifests.items()},
            **origin["run"],
        },
        "quantization": {
            **load_json(inputs["quantize"] / "candidates.json", ("candidates", "chosen", "target", "rung")),
            "sensitivity": load_json(inputs["quantize"] / "sensitivity.json", ("layers",)),
        },
    }


def _adopted(manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a model that kdedge did not train."""
    exported = manifests["export"]["facts"]
    known = {"arch": Path(exported["adopted"]).stem, **{key: exported[key] for key in ("adopted", "params", "macs")}}
    return {"run": {"seed": manifests["quantize"]["config"]["seed"]["seed"]}, "student": known}


def _trained(manifests: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Return runtime and seed of a training, its teacher, its student and its log."""
    teacher, student, exported = (manifests[stage]["facts"] for stage in ("teacher", "distill", "export"))
    runtime = manifests["distill"]["config"]["runtime"]
    return {
        "run": {"runtime": runtime, "seed": runtime["seed"]},
        "teacher": {key: teacher[key] for key in ("arch", "stem", "params", "weights", "epochs", "val_top1_pct")},
        "student": {
            **{key: student[key] for key in ("arch", "params", "method", "epochs", "val_top1_pct")},
            "weights_sha256": student.get("weights_sha256"),
            "pruned": student.get("pruned") or None,
            "macs": exported["macs"],
            "train_images": student["train_images"],
            "balance": student.get("balance", "none"),
            "hint_pairs": student["hint_pairs"],
            "block_variances": student["block_variances"],
        },
        "training": read_log(inputs["distill"] / f"training_log_{student['method']}.csv"),
    }


def _made_with(config: Config, inputs: Mapping[str, Path]) -> bool:
    """Return whether every earlier stage has the configuration of this command, which then reproduces the run.

    In a study, a student may have another seed than its teacher.
    """
    return all(load_manifest(folder)["config"] == STAGES[stage].fingerprint(config) for stage, folder in inputs.items())


def _warn_few_groups(dataset: Dataset, groups: npt.NDArray[np.str_] | None) -> None:
    """Warn of test images from so few groups that no model can pass the gate."""
    sampling = sampling_of_sizes(groups)
    if sampling.too_few:
        counted = "group, which counts" if sampling.groups == 1 else "groups, which count"
        warn_once(
            f"{dataset.name}: the test part has {sampling.groups} {counted} as {sampling.equal_groups:.1f} "
            f"of equal size; the gate needs at least {FEWEST_GROUPS} to pass"
        )


def _check_others(config: Config, run_dir: Path) -> None:
    """Refuse reports that cannot be compared with that of this run."""
    others = load_others(config.benchmark.compare_with)
    for name in others:
        # A benchmark that reads its own report would never be up to date.
        if find_report(Path(name)).resolve().parent.parent == run_dir.resolve():
            raise InputError(f"--compare-with {name} is this run itself", "name only the others")
    dataset = opened(config.data)
    images = {"images_sha256": data_sha256(config.data, "test"), **dataset.spec.record}
    check_comparable(others, host_record(), dataset.name, images)


class _TorchScores:
    """Scores the PyTorch teacher and student on a split.

    A teacher is scored once per process: all cells of a study have the same.

    Args:
        inputs: Directories of the earlier stages.
        images_sha256: SHA-256 of the images of the split.
    """

    _teachers: ClassVar[dict[tuple[str, ...], float]] = {}

    def __init__(self, inputs: Mapping[str, Path], images_sha256: str) -> None:
        self._inputs, self._images_sha256 = inputs, images_sha256

    def __call__(self, split: Split) -> dict[str, float | None]:
        """Return the top-1 accuracies in percent."""
        from kdedge.pipeline.models.load import load_student, load_teacher

        key = (*load_manifest(self._inputs["teacher"])["outputs"].values(), self._images_sha256)
        if key not in self._teachers:
            teacher = load_teacher(self._inputs["teacher"])
            self._teachers[key] = _top1_pct(teacher, split, teacher.image_size)
        return {
            "teacher_test_top1_pct": self._teachers[key],
            "torch_fp32_top1_pct": _top1_pct(load_student(self._inputs["distill"]), split),
        }


def _top1_pct(model: "torch.nn.Module", split: Split, resized: int = 0) -> float:
    """Return the top-1 accuracy of a model on a split, in percent.

    Args:
        model: In eval mode; maps normalised inputs to logits.
        split: The images and their labels.
        resized: Side length in pixels to which the model resizes the images (0: it does not).
    """
    import torch

    from kdedge.pipeline.training.batches import place, predict_logits

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right = predict_logits(place(model, device), split, device, resized).argmax(1).numpy() == split.labels
    return round(100 * float(right.mean()), 4)

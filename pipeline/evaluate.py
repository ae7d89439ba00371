"""The benchmark stage of a run: hands the models, and what earlier stages know, to `benchmarks.stage`.

`benchmarks` imports no PyTorch; where PyTorch is installed this module scores the PyTorch models on the same images.

    kdedge benchmark --out artifacts/run
"""

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from benchmarks.report import OTHER_FILES
from benchmarks.report_file import REPORT, load_report
from benchmarks.runtime import check_fits, open_model
from benchmarks.sampling import stratified_sample
from benchmarks.stage import Emulate, run_benchmark
from pipeline.artifacts import load_manifest
from pipeline.config import Config
from pipeline.data import Dataset, Split, open_dataset
from pipeline.data.folder import Folder
from pipeline.errors import InputError
from pipeline.files import disk_errors, load_json
from pipeline.ownership import holds_nothing, is_stage, not_ours
from pipeline.parsing import parse_emulated
from pipeline.progress import warn
from pipeline.shareable import as_flags, cuts_paths
from pipeline.stages import STAGES, check_measurable, check_outside_data
from pipeline.training_log import read_log

if TYPE_CHECKING:
    import torch

__all__ = ["benchmark_bundle", "check_benchmark", "run", "sample_test_images"]

# What a report says of the making of its run, and would be false of another host or other images.
_OF_THE_MAKER = ("commit", "data", "versions", "wall_s", "stage_wall_s", "peak_rss_mb", "runtime")


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Measure accuracy and latency and write the report; see `pipeline.artifacts.StageSpec`.

    The only stage that reads test images.
    """
    facts = _run_facts(inputs)
    if _made_with(config, inputs):
        facts["run"]["commands"] = [shlex.join(["kdedge", "run-all", *as_flags(config)])]
        facts["run"]["commands_lack_paths"] = cuts_paths(config)
    images_sha256 = STAGES["benchmark"].data(config)["test"]
    report = run_benchmark(
        config,
        inputs["export"] / "student.onnx",
        inputs["quantize"] / "student.int8.onnx",
        open_dataset(config.data),
        images_sha256=images_sha256,
        run_facts=facts,
        torch_top1=_TorchScores(inputs, images_sha256) if importlib.util.find_spec("torch") else None,
        emulate=_emulation(config),
        out_dir=out_dir,
    )
    return {key: report[key] for key in ("accuracy", "gate", "size")}


def check_benchmark(config: Config, bundle: Path, out_dir: Path) -> None:
    """Check what can be known before a bundle is measured; write and create nothing.

    Raises:
        InputError: ``bundle`` is no bundle, ``out_dir`` is in it or holds files that no benchmark wrote, or an option
            does not fit this machine.
        StageError: A CPU cannot be emulated here, or the bundle is damaged.
    """
    from export.verify import read_manifest

    read_manifest(bundle)
    if out_dir.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"--out {out_dir} is inside the bundle, whose files are fixed", "give another --out")
    if any(is_stage(out_dir, stage) for stage in STAGES):
        raise InputError(f"--out {out_dir} is a finished stage, whose files are fixed", "give another --out")
    if holds_nothing(out_dir / REPORT):
        # It is written before the others.
        for path in (out_dir / name for name in OTHER_FILES):
            if not holds_nothing(path):
                raise not_ours(path, f"there is no {REPORT} of kdedge next to it")
    else:
        try:
            load_report(out_dir / REPORT)
        except InputError as error:
            raise not_ours(out_dir / REPORT, str(error)) from error
    check_measurable(config)
    _open_for(bundle, config)
    check_outside_data(config.data, out_dir)


def benchmark_bundle(config: Config, bundle: Path, out_dir: Path) -> dict[str, Any]:
    """Verify a bundle, measure it on this host and write the report to ``out_dir``; return the report.

    Needs no PyTorch.

    Raises:
        InputError: This is no bundle, or its data set is not to be had.
        StageError: The bundle was altered, or computes other results here; a CPU cannot be emulated; or ``out_dir``
            cannot be written.
    """
    from export.verify import verify_bundle

    emulate = _emulation(config)
    verify_bundle(bundle)
    known = load_json(bundle / "report.json", ("run", "teacher", "student"))
    # The report is about this host and these images: what was measured where the bundle was made stays in the bundle.
    run = {key: value for key, value in known["run"].items() if key not in _OF_THE_MAKER}
    facts = {"run": run, **{key: known.get(key) for key in ("teacher", "student", "training", "quantization")}}
    dataset = _open_for(bundle, config)
    images_sha256 = dataset.test_sha256()
    judged_on = load_manifest(bundle)["facts"].get("history", {}).get("data", {}).get("data/test")
    if judged_on:
        run["same_test_images"] = judged_on == images_sha256
        if not run["same_test_images"]:
            warn(f"these are not the test images ({dataset.name}) that the bundle was judged on: compare no accuracies")
    if not run.get("same_test_images"):
        facts["teacher"] = {**known["teacher"], "test_top1_pct": None}
    with disk_errors(out_dir):
        return run_benchmark(
            config,
            bundle / "student.onnx",
            bundle / "student.int8.onnx",
            dataset,
            images_sha256=images_sha256,
            run_facts=facts,
            torch_top1=None,
            emulate=emulate,
            out_dir=out_dir,
        )


def sample_test_images(config: Config, bundle: Path, count: int) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Return ``count`` test images, stratified by class, with their numbers in the data set.

    For `export.verify.emulate_bundle`, which chooses nothing by them.

    Raises:
        InputError: The data set is not to be had, has fewer test images, or is not what the model was trained on.
        StageError: CIFAR-10 could not be fetched.
    """
    dataset = _open_for(bundle, config)
    check_fits(open_model(bundle / "student.int8.onnx"), dataset.class_names, dataset.image_size)
    test = dataset.test()
    if count > len(test):
        raise InputError(f"{dataset.name} has {len(test)} test images, {count} were asked for", "ask for fewer")
    numbers = _sample(test, count)
    return numbers, test.images[numbers]


def _open_for(bundle: Path, config: Config) -> Dataset:
    """Open the data set that a bundle is to be measured on; of a folder the test images are enough."""
    dataset = open_dataset(config.data)
    if not isinstance(dataset, Folder):
        return dataset
    return dataset.labelled_as(tuple((bundle / "labels.txt").read_text(encoding="utf-8").splitlines()))


def _sample(test: Split, count: int) -> list[int]:
    """Return the numbers of ``count`` test images (all if there are fewer), stratified by class, ascending.

    Every run and bundle of a data set draws the same ones, whatever its seed.
    """
    return sorted(stratified_sample(test.labels, count, seed=0).tolist())


def _emulation(config: Config) -> Emulate | None:
    """Return what runs a model on the CPUs that are to be emulated, after checking that they can be; None: on none."""
    settings = config.benchmark
    cpus = parse_emulated(settings.emulate, "--emulate")
    if not cpus:
        return None
    from export.emulate import check_emulators, emulate

    check_emulators(cpus)

    def run_on_all(model: Path, test: Split) -> list[dict[str, Any]]:
        numbers = _sample(test, settings.emulate_images)
        rows = [emulate(model, test.images[numbers], cpu).as_dict() for cpu in cpus]
        for row in rows:
            row["flipped"] = [{**flip, "image": numbers[flip["image"]]} for flip in row["flipped"]]
        return rows

    return run_on_all


def _run_facts(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Collect what the report says of the earlier stages."""
    manifests = {stage: load_manifest(directory) for stage, directory in inputs.items()}
    teacher, student, exported = (manifests[stage]["facts"] for stage in ("teacher", "distill", "export"))
    return {
        "run": {
            "wall_s": round(sum(manifest["wall_s"] for manifest in manifests.values()), 1),
            "stage_wall_s": {stage: manifest["wall_s"] for stage, manifest in manifests.items()},
            "peak_rss_mb": max(manifest.get("peak_rss_mb") or 0 for manifest in manifests.values()) or None,
            "stage_commits": {stage: manifest["commit"] for stage, manifest in manifests.items()},
            "runtime": manifests["distill"]["config"]["runtime"],
            "seed": manifests["distill"]["config"]["runtime"]["seed"],
        },
        "teacher": {key: teacher[key] for key in ("arch", "stem", "params", "weights", "epochs", "val_top1_pct")},
        "student": {
            **{key: student[key] for key in ("arch", "params", "method", "epochs", "val_top1_pct")},
            "weights_sha256": student.get("weights_sha256"),
            "macs": exported["macs"],
            "train_images": student["train_images"],
            "hint_pairs": student["hint_pairs"],
            "block_variances": student["block_variances"],
        },
        "training": read_log(inputs["distill"] / f"training_log_{student['method']}.csv"),
        "quantization": {
            **load_json(inputs["quantize"] / "candidates.json", ("candidates", "chosen", "target", "rung")),
            "sensitivity": load_json(inputs["quantize"] / "sensitivity.json", ("layers",)),
        },
    }


def _made_with(config: Config, inputs: Mapping[str, Path]) -> bool:
    """Return whether every earlier stage was made with this configuration, so that it would make the run again.

    A student may have another seed than its teacher, as in a study, or be older than the last options.
    """
    return all(load_manifest(folder)["config"] == STAGES[stage].key(config) for stage, folder in inputs.items())


class _TorchScores:
    """Scores the PyTorch teacher and student on a split.

    A study asks for the same teacher with every cell: it is scored once per process.

    Args:
        inputs: Directories of the earlier stages.
        images_sha256: Of the images of the split.
    """

    _teachers: ClassVar[dict[tuple[str, ...], float]] = {}

    def __init__(self, inputs: Mapping[str, Path], images_sha256: str) -> None:
        self._inputs, self._images_sha256 = inputs, images_sha256

    def __call__(self, split: Split) -> dict[str, float | None]:
        """Return the top-1 accuracies in percent."""
        from pipeline.distill.stage import load_student
        from pipeline.teacher import load_teacher

        key = (*load_manifest(self._inputs["teacher"])["outputs"].values(), self._images_sha256)
        if key not in self._teachers:
            self._teachers[key] = _top1_pct(load_teacher(self._inputs["teacher"]), split)
        return {
            "teacher_test_top1_pct": self._teachers[key],
            "torch_fp32_top1_pct": _top1_pct(load_student(self._inputs["distill"]), split),
        }


def _top1_pct(model: "torch.nn.Module", split: Split) -> float:
    """Return the share of a split that a model answers right, in percent.

    Args:
        model: In eval mode; float32 ``[N, 3, S, S]`` in 0..1 to logits ``[N, C]``.
        split: The images and their labels.
    """
    import torch

    from pipeline.training import place, predict_logits

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right = predict_logits(place(model, device), split.images, device).argmax(1).numpy() == split.labels
    return round(100 * float(right.mean()), 4)

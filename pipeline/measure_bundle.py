"""Measure a bundle on this host with a data set of the same classes. Needs no PyTorch.

``kdedge benchmark BUNDLE --data test_images`` runs it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.candidate import Candidate
from kdedge.benchmarks.measure import run_benchmark
from kdedge.benchmarks.options import parse_runtimes
from kdedge.benchmarks.report.file import REPORT, load_report
from kdedge.benchmarks.report.pages import OTHER_FILES
from kdedge.benchmarks.session import check_fits, open_model
from kdedge.dataset import Dataset
from kdedge.errors import InputError
from kdedge.export.bundle.verify import read_manifest, verify_bundle
from kdedge.export.runtimes.registry import RUNTIMES
from kdedge.export.runtimes.runtime import open_converted
from kdedge.files import disk_errors, load_json
from kdedge.manifest import load_manifest
from kdedge.ownership import holds_nothing, is_stage, not_ours
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import check_outside, open_dataset
from kdedge.pipeline.data.user_images import UserImages
from kdedge.pipeline.stages.benchmark_setup import check_measurable, emulation, sample
from kdedge.pipeline.stages.registry import STAGES
from kdedge.progress import warn

__all__ = ["benchmark_bundle", "check_benchmark", "sample_test_images"]

# Parts of a report about the run that made it, which are wrong for another host or other images.
_OF_THE_MAKER = ("commit", "data", "versions", "wall_s", "stage_wall_s", "peak_rss_mb", "runtime")


def check_benchmark(config: Config, bundle: Path, out_dir: Path) -> None:
    """Check a bundle and the options before a measurement; write and create nothing.

    Raises:
        InputError: ``bundle`` is not a bundle, ``out_dir`` is in it or has files that no benchmark wrote, or an option
            does not fit this machine.
        StageError: A CPU cannot be emulated here, or the bundle is damaged.
    """
    read_manifest(bundle)
    if out_dir.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"--out {out_dir} is inside the bundle, whose files are fixed", "use another --out")
    if any(is_stage(out_dir, stage) for stage in STAGES):
        raise InputError(f"--out {out_dir} is a finished stage, whose files are fixed", "use another --out")
    if holds_nothing(out_dir / REPORT):
        # The report is written before the other files.
        for path in (out_dir / name for name in OTHER_FILES):
            if not holds_nothing(path):
                raise not_ours(path, f"there is no {REPORT} of kdedge next to it")
    else:
        try:
            load_report(out_dir / REPORT)
        except InputError as error:
            raise not_ours(out_dir / REPORT, str(error)) from error
    check_measurable(config.benchmark, to_convert=False)
    check_outside(_open_for(bundle, config), out_dir)


def benchmark_bundle(config: Config, bundle: Path, out_dir: Path) -> dict[str, Any]:
    """Verify a bundle, measure it on this host and write the report to ``out_dir``; return the report.

    Needs no PyTorch.

    Raises:
        InputError: It is not a bundle, or its data set is unavailable.
        StageError: The bundle was altered or computes other results here, a CPU cannot be emulated, or ``out_dir``
            cannot be written.
    """
    emulate = emulation(config.benchmark)
    verify_bundle(bundle)
    known = load_json(bundle / "report.json", ("run", "teacher", "student"))
    # The report is about this host and these images, not about the host that built the bundle.
    run = {key: value for key, value in known["run"].items() if key not in _OF_THE_MAKER}
    facts = {"run": run, **{key: known.get(key) for key in ("teacher", "student", "training", "quantization", "c")}}
    runtimes: dict[Candidate, dict[str, Any]] = {}
    for name in parse_runtimes(config.benchmark.runtime):
        runtimes |= open_converted(RUNTIMES[name], bundle / "student.onnx", bundle)
    dataset = _open_for(bundle, config)
    images_sha256 = dataset.test_sha256()
    judged_on = load_manifest(bundle)["facts"].get("history", {}).get("data", {}).get("data/test")
    if judged_on:
        run["same_test_images"] = judged_on == images_sha256
        if not run["same_test_images"]:
            warn(f"these are not the test data ({dataset.name}) of the bundle: its accuracies are not comparable")
            _warn_unmeasured(dataset)
    if not run.get("same_test_images"):
        facts["teacher"] = {**known["teacher"], "test_top1_pct": None}
    with disk_errors(out_dir):
        return run_benchmark(
            config.benchmark,
            bundle / "student.onnx",
            bundle / "student.int8.onnx",
            dataset,
            images_sha256=images_sha256,
            run_facts=facts,
            torch_top1=None,
            emulate=emulate,
            runtimes=runtimes,
            out_dir=out_dir,
        )


def sample_test_images(config: Config, bundle: Path, count: int) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Return ``count`` test images, stratified by class, with their indices in the data set.

    For `kdedge.export.bundle.verify.emulate_bundle`.

    Raises:
        InputError: The data set is unavailable, has too few test images, or does not fit the model.
        StageError: CIFAR-10 could not be fetched.
    """
    dataset = _open_for(bundle, config)
    check_fits(open_model(bundle / "student.int8.onnx"), dataset.class_names, dataset.spec)
    test = dataset.test()
    if count > len(test):
        raise InputError(
            f"{dataset.name} has {len(test)} test {test.spec.unit}s, fewer than {count}", "lower the number"
        )
    numbers = sample(test, count)
    return numbers, test.images[numbers]


def _open_for(bundle: Path, config: Config) -> Dataset:
    """Open the data set for a bundle; a folder needs only test images."""
    dataset = open_dataset(config.data)
    if not isinstance(dataset, UserImages):
        return dataset
    return dataset.labelled_as(tuple((bundle / "labels.txt").read_text(encoding="utf-8").splitlines()))


def _warn_unmeasured(dataset: Dataset) -> None:
    """Warn of new images that are not measured: without a test part most are training images."""
    if isinstance(dataset, UserImages) and (others := len(dataset.items) - len(dataset.test_items)):
        where = " (PATH/test/CLASS/IMAGE)" if dataset.kind == "folder" else ""
        unmeasured = f"{others:,} of {len(dataset.items):,} images of {dataset.name} are not measured"
        warn(f"{unmeasured}: only test images{where} are")

"""The bundle stage: passes golden images and the results of earlier stages to `kdedge.export.bundle.build`.

    kdedge bundle --out RUN        # reads RUN/export, RUN/quantize and RUN/benchmark, writes RUN/bundle

If the gate refuses the model of a later run, its earlier bundle is moved to ``RUN/bundle.previous``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdedge.benchmarks.report.file import read_report
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.errors import GateError
from kdedge.export.bundle.build import GOLDEN_IMAGES, build_bundle, check_gate
from kdedge.files import file_sha256, load_json
from kdedge.manifest import load_manifest
from kdedge.ownership import MANIFEST, holds_nothing, is_stage, not_ours
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import opened, training_images
from kdedge.pipeline.exchange import discard
from kdedge.progress import warn

__all__ = ["check_previous", "follow_gate", "run", "set_aside"]

PREVIOUS_BUNDLE = "bundle.previous"


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Build the bundle if the gate of ``inputs["benchmark"]/report.json`` allows it.

    Raises:
        GateError: The gate failed, or is undecided and that is not allowed.
        InputError: The report or a model is damaged, or a model does not fit the data set.
    """
    report = read_report(inputs["benchmark"] / "report.json")
    check_gate(report, allow_undecided=config.bundle.allow_undecided)
    dataset = opened(config.data)
    _, val = training_images(dataset, config.data)
    golden = val.images[stratified_sample(val.labels, GOLDEN_IMAGES, config.runtime.seed)]
    golden = np.ascontiguousarray(golden)
    return build_bundle(report, golden, list(dataset.class_names), inputs, out_dir, spec=dataset.spec)


def check_previous(run_dir: Path) -> None:
    """Refuse to replace a folder ``bundle.previous`` that is not a bundle.

    Raises:
        InputError: There is such a folder.
    """
    previous = run_dir / PREVIOUS_BUNDLE
    if not holds_nothing(previous) and not is_stage(previous, "bundle"):
        raise not_ours(previous, f"it has no {MANIFEST} of the stage bundle")


def follow_gate(config: Config, run_dir: Path) -> None:
    """Move the bundle of an earlier run aside if the gate of the current report refuses the model.

    Raises:
        InputError: The report is damaged.
    """
    bundle, report = run_dir / "bundle", run_dir / "benchmark" / "report.json"
    if not is_stage(bundle, "bundle"):
        return
    if load_manifest(bundle)["inputs"].get("benchmark/report.json") == file_sha256(report):
        return
    try:
        check_gate(load_json(report, ("accuracy", "gate")), allow_undecided=config.bundle.allow_undecided)
    except GateError:
        set_aside(run_dir)


def set_aside(run_dir: Path) -> None:
    """Move the bundle of an earlier run to ``bundle.previous``.

    A previous bundle that passed its gate is not replaced by one that did not. Files of others are kept.
    """
    bundle, previous = run_dir / "bundle", run_dir / PREVIOUS_BUNDLE
    if not is_stage(bundle, "bundle"):
        return
    found = f"{bundle} is of an earlier command, and the gate does not accept the present model"
    if is_stage(previous, "bundle"):
        if _passed(previous) and not _passed(bundle):
            discard(bundle, previous)
            warn(f"{found}: removed; the last one that passed its gate is in {previous}")
            return
        discard(previous, bundle)
    elif previous.exists():
        previous.rmdir()
    bundle.rename(previous)
    warn(f"{found}: moved to {previous}")


def _passed(bundle: Path) -> bool:
    return load_manifest(bundle)["facts"].get("passed") is True

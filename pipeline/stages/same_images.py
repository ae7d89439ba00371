"""Quantization and bundle take images of the student's own training set, wherever the options of this command point."""

from collections.abc import Collection
from pathlib import Path

from kdedge.errors import InputError
from kdedge.manifest import load_manifest
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import data_sha256

__all__ = ["check_same_images"]


def check_same_images(config: Config, run_dir: Path, names: Collection[str]) -> None:
    """Refuse training images other than those of the finished student that is read.

    Raises:
        InputError: They differ from those in the manifest of the stage distill.
    """
    if "distill" in names:
        return
    trained_on = load_manifest(run_dir / "distill")
    if trained_on["inputs"].get("data/train") != data_sha256(config.data, "train"):
        source = trained_on["config"]["data"]["source"]
        raise InputError(
            f"the student in {run_dir / 'distill'} was trained on other images ({source}) than --data "
            f"{config.data.source} now holds",
            "name the data set that it was trained on with --data, or train again: `kdedge run-all "
            f"--data {config.data.source} --out {run_dir}`",
        )

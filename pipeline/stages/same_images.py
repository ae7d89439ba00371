"""The check of quantization and bundle that their images are those that the student was trained on."""

from collections.abc import Collection
from pathlib import Path

from kdedge.errors import InputError
from kdedge.manifest import load_manifest
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import data_sha256

__all__ = ["check_data"]


def check_data(config: Config, run_dir: Path, names: Collection[str]) -> None:
    """Refuse other training images than those of the finished student.

    Args:
        config: The configuration of the run.
        run_dir: The run directory.
        names: Names of the stages that run; with ``distill`` among them there is nothing to check.

    Raises:
        InputError: The images differ from those in the manifest of the stage distill.
    """
    if "distill" in names:
        return
    trained_on = load_manifest(run_dir / "distill")
    if trained_on["inputs"].get("data/train") != data_sha256(config.data, "train"):
        source = trained_on["config"]["data"]["source"]
        raise InputError(
            f"the student in {run_dir / 'distill'} was trained on other data ({source}) than --data "
            f"{config.data.source} now has",
            "name the data set that it was trained on with --data, or train again: `kdedge run-all "
            f"--data {config.data.source} --out {run_dir}`",
        )

"""The check of quantization and bundle that their images are those that the student was trained on.

A model that kdedge did not train is bundled with the images that it was calibrated on.
"""

from collections.abc import Collection
from pathlib import Path

from kdedge.errors import InputError, command
from kdedge.manifest import load_manifest
from kdedge.ownership import is_stage
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.sources import data_sha256

__all__ = ["check_data"]


def check_data(config: Config, run_dir: Path, names: Collection[str]) -> None:
    """Refuse other training images than those of the finished student, or of the quantization of another model.

    Args:
        config: The configuration of the run.
        run_dir: The run directory.
        names: Names of the stages that run; with the one that learns from images there is nothing to check.

    Raises:
        InputError: The images differ from those in the manifest of the stage distill or quantize.
    """
    trained = "distill" in names or is_stage(run_dir / "distill", "distill")
    learned = "distill" if trained else "quantize"
    if learned in names:
        return
    trained_on = load_manifest(run_dir / learned)
    if trained_on["inputs"].get("data/train") != data_sha256(config.data, "train"):
        source = trained_on["config"]["data"]["source"]
        raise InputError(
            f"the student in {run_dir / learned} was {'trained' if trained else 'calibrated'} on other data "
            f"({source}) than --data {config.data.source} now has",
            "name its data set with --data, and its --image-size, --resize and --color, or "
            + (
                f"train again: `{command('run-all', '--data', config.data.source, '--out', run_dir)}`"
                if trained
                else "quantize the model again"
            ),
        )

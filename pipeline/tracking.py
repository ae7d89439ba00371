"""Logs every training epoch and the results of every stage for TensorBoard or MLflow, with ``--track``.

    kdedge run-all --data sample --out artifacts/demo --track tensorboard
    tensorboard --logdir artifacts/demo/tensorboard

The values are those of the CSV of a training, images per second, and the numbers in the manifest of a stage
(``result/…``). Nothing leaves this machine, unless ``MLFLOW_TRACKING_URI`` names a server.
"""

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.options import option
from kdedge.pipeline.training.distributed import rank

__all__ = ["Tracked", "TrackingConfig", "check_tracking", "open_tracking", "result_values"]

_TENSORBOARD, _MLFLOW = "tensorboard", "mlflow"

Tracked = Callable[[Mapping[str, float], int], None]
"""Logs values by name at a step: the number of an epoch, from 1, or 0 for results."""


def _parse_target(value: str, flag: str) -> None:
    """Refuse a word that is neither a tracker nor a folder, such as a typing error."""
    if value not in ("", _TENSORBOARD, _MLFLOW) and os.sep not in value and not Path(value).is_dir():
        raise InputError(f"{flag} {value}: expected tensorboard, mlflow or a folder, such as ./{value}")


@dataclass(frozen=True)
class TrackingConfig:
    """Where the progress is logged in addition to the CSV files. It changes no result."""

    to: str = option(
        "",
        "Log losses, accuracies, beta and images per second: tensorboard (to RUN/tensorboard), mlflow (to ./mlruns or "
        "MLFLOW_TRACKING_URI), or a folder that collects the TensorBoard files of several runs.",
        flag="--track",
        parse=_parse_target,
    )


def check_tracking(config: TrackingConfig) -> None:
    """Check that the package is installed.

    Raises:
        ModuleNotFoundError: It is not.
    """
    needed = _MLFLOW if config.to == _MLFLOW else _TENSORBOARD
    if config.to and importlib.util.find_spec(needed) is None:
        raise ModuleNotFoundError(name=needed)


def open_tracking(config: TrackingConfig, run_dir: Path, stage: str) -> Tracked:
    """Return a function that logs values of a stage: nothing without ``--track``, and in the first process only."""
    if not config.to or rank():
        return lambda values, step: None
    if config.to == _MLFLOW:
        return _Mlflow(f"{run_dir} {stage}")
    if config.to == _TENSORBOARD:
        return _TensorBoard(run_dir / _TENSORBOARD / stage)
    inside = [part for part in run_dir.parts[run_dir.is_absolute() :] if part != ".."]
    return _TensorBoard(Path(config.to, *inside, stage))


def result_values(metrics: Mapping[str, Any], prefix: str = "result") -> Iterator[tuple[str, float]]:
    """Yield the numbers among the metrics of a stage by path, such as ``result/validation/top1_pct``."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from result_values(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{name}", value


class _TensorBoard:
    """Writes event files. Where steps begin again, TensorBoard shows the later values only."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._last = folder, 0
        self._writer: Any = None

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None or step <= self._last:
            self._writer = SummaryWriter(str(self._folder), purge_step=step or None)
        self._last = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class _Mlflow:
    """Writes runs of the experiment ``kdedge``, one per training: a resumed training continues its run."""

    def __init__(self, name: str) -> None:
        from mlflow import MlflowClient

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 prefers a database, which needs SQLAlchemy
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", "mlruns"))
        self._name, self._run = name.replace("'", ""), ""

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if step == 1 or not self._run:
            self._run = self._open(new=step == 1)
        now_ms = int(1000 * time.time())
        finite = [Metric(name, value, now_ms, step) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._run, finite)
        if step == 0:
            self._client.set_terminated(self._run)

    def _open(self, *, new: bool) -> str:
        """Return the id of the last run of this name, or of a new one."""
        known = self._client.get_experiment_by_name("kdedge")
        experiment = known.experiment_id if known else self._client.create_experiment("kdedge")
        same_name = f"tags.mlflow.runName = '{self._name}'"
        found = [] if new else self._client.search_runs([experiment], same_name, max_results=1)
        run = found[0] if found else self._client.create_run(experiment, run_name=self._name)
        return str(run.info.run_id)

"""Runs stages in a run directory: checks first, runs stages that are not up to date, records the options.

`check_stages` checks, and ``run_stages(("teacher", "distill"), config, Path("artifacts/run"))`` runs.
"""

import dataclasses
from pathlib import Path
from typing import Any

from kdedge.errors import GateError, InputError, command
from kdedge.files import read_json, write_json
from kdedge.manifest import check_finished, load_manifest
from kdedge.ownership import check_owned, is_stage, not_ours
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import check_outside, opened
from kdedge.pipeline.data.summary import short_summary
from kdedge.pipeline.exchange import clean_up
from kdedge.pipeline.run_dir import run_stage, why_rerun
from kdedge.pipeline.stages import bundle
from kdedge.pipeline.stages.registry import STAGES, TRAINING_STAGES, stages_of
from kdedge.pipeline.tracking import check_tracking, open_tracking, result_values
from kdedge.pipeline.training.distributed import dismiss, processes
from kdedge.pipeline.unfinished import unfinished_config
from kdedge.progress import log

__all__ = ["check_stages", "record_config", "recorded_config", "recorded_runtime", "run_stages"]

CONFIG = "config.json"


def check_stages(names: tuple[str, ...], config: Config, run_dir: Path) -> None:
    """Check stages before they run, cheap checks first; write, create and time nothing.

    Raises:
        InputError: A file or folder in the way is not kdedge's, an earlier stage is missing, an option does not fit
            this machine, the images or the other options, or the data set or another file is bad.
        StageError: A CPU cannot be emulated here, or the data set cannot be fetched.
    """
    check_owned(run_dir, names)
    bundle.check_previous(run_dir)
    recorded = recorded_config(run_dir)
    stages = stages_of(names, run_dir)
    for stage in stages:
        for before in stage.reads:
            if before not in names:
                check_finished(run_dir / before)
                _check_current(run_dir, before)
    if not TRAINING_STAGES.isdisjoint(names):
        from kdedge.pipeline.training.device import check_threads

        check_threads(config.runtime.threads, recorded.get("runtime"))
    check_tracking(config.tracking)
    for stage in stages:
        if stage.check:
            stage.check(config, run_dir)
    for stage in stages:
        stage.data(config)
    check_outside(opened(config.data), run_dir)
    for stage in stages:
        if stage.check_data:
            stage.check_data(config, run_dir, names)


def _check_current(run_dir: Path, stage: str) -> None:
    """Check that a finished stage was made from the present results of the stages before it.

    Raises:
        InputError: A stage before it has another result now.
    """
    made_from = load_manifest(run_dir / stage)["inputs"]
    for before in STAGES[stage].reads:
        used = {name: digest for name, digest in made_from.items() if name.startswith(f"{before}/")}
        if not used or not is_stage(run_dir / before, before):
            continue
        _check_current(run_dir, before)
        outputs = load_manifest(run_dir / before)["outputs"]
        if used != {f"{before}/{name}": digest for name, digest in outputs.items()}:
            raise InputError(
                f"{run_dir / stage} is of an earlier result of {run_dir / before}",
                f"run `{command(stage, '--out', run_dir)}` first",
            )


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
        refresh: Run stages again if another version of the stage or of a package that decides the result made them.
        checked: Whether `check_stages` was called.

    Returns:
        Whether any of them ran.

    Raises:
        KdedgeError: A check of `check_stages` or a stage fails.
    """
    if not checked:
        check_stages(names, config, run_dir)
    if names == tuple(STAGES):
        log(short_summary(config.data))
    if not TRAINING_STAGES.isdisjoint(names):
        from kdedge.pipeline.training.device import resolve

        runtime = resolve(config.runtime, recorded_runtime(run_dir))
        runtime = dataclasses.replace(runtime, processes=processes()) if force else runtime
        config = dataclasses.replace(config, runtime=runtime)
        _check_training(names, config, run_dir, force=force)
    clean_up(run_dir, STAGES)
    any_ran = False
    try:
        for stage in stages_of(names, run_dir):
            name = stage.name
            if run_stage(stage, config, run_dir, force=force, refresh=refresh):
                any_ran = True
                results = dict(result_values(load_manifest(run_dir / name)["facts"]))
                open_tracking(config.tracking, run_dir, name)(results, 0)
            record_config(config, run_dir, name)
            if TRAINING_STAGES.isdisjoint(names[names.index(name) + 1 :]):
                dismiss()
        if "benchmark" in names:
            bundle.follow_gate(config, run_dir)
    except GateError:
        bundle.set_aside(run_dir)
        raise
    return any_ran


def _check_training(names: tuple[str, ...], config: Config, run_dir: Path, *, force: bool) -> None:
    """Check that there are the GPU and the processes for the stages that train."""
    from kdedge.pipeline.training.device import check_cuda

    cuda, wanted = config.runtime.device == "cuda", config.runtime.processes
    if not cuda and wanted == processes():
        return
    if any(force or why_rerun(STAGES[name], config, run_dir) for name in names if name in TRAINING_STAGES):
        if wanted != processes():
            raise InputError(
                f"{run_dir} trains in {wanted} processes, and this command has {processes()}",
                f"start it with torchrun and {wanted} processes, or start the training over with --force",
            )
        check_cuda()


def recorded_config(run_dir: Path) -> dict[str, Any]:
    """Return the recorded configuration of a run directory, or an empty one.

    Its sections are of different stages, so they may contradict each other: a new teacher of signals, and a student of
    images that is not replaced yet.

    Raises:
        InputError: The file is damaged, or not kdedge's.
    """
    path = run_dir / CONFIG
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        config = read_json(path)
        build_config(config, consistent=False)
    except (AttributeError, InputError, OSError, TypeError, ValueError) as error:
        raise not_ours(path, f"it is not a kdedge configuration ({str(error).splitlines()[0]})") from error
    if not config:
        raise not_ours(path, "it is an empty object")
    recorded: dict[str, Any] = config
    return recorded


def recorded_runtime(run_dir: Path) -> dict[str, Any] | None:
    """Return the resolved runtime of finished stages, otherwise of unfinished work."""
    for config in (recorded_config(run_dir), *(unfinished_config(run_dir, name) for name in sorted(TRAINING_STAGES))):
        if "runtime" in config:
            runtime: dict[str, Any] = config["runtime"]
            return runtime
    return None


def record_config(config: Config, run_dir: Path, made: str) -> None:
    """Record the options of a stage that was or will be made; those of other finished stages stay unchanged."""
    recorded, values = recorded_config(run_dir), dataclasses.asdict(config)
    for section in values.keys() & recorded.keys():
        decided = [name for name, stage in STAGES.items() if section in stage.options]
        if made not in decided and any(is_stage(run_dir / name, name) for name in decided):
            values[section] = recorded[section]
    if values != recorded:
        write_json(run_dir / CONFIG, values)

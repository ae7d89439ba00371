"""Runs a stage in a run directory, or skips it.

A stage writes into ``RUN/.<stage>.partial``, which is renamed to ``RUN/<stage>`` when it is complete. ``manifest.json``
records the configuration and the SHA-256 of every input and output. A stage is skipped only if all three still match.
Files of others are never replaced: `kdedge.ownership`.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdedge.errors import BusyError, DivergenceError, InputError, KdedgeError
from kdedge.files import disk_errors, file_sha256, write_json
from kdedge.manifest import MANIFEST_SCHEMA, check_finished, load_manifest, output_damage, sealed, versions
from kdedge.ownership import MANIFEST, check_owned, not_ours, partial_dir
from kdedge.pipeline.changes import changes
from kdedge.pipeline.exchange import DIVERGED, recover, replace_dir
from kdedge.pipeline.peak_memory import peak_rss_mb, reset_peak
from kdedge.pipeline.unfinished import note_attempt, prepare_partial
from kdedge.progress import format_duration, log

__all__ = ["StageSpec", "lock_run", "run_stage", "why_rerun"]

_SHORT_WAIT_S = 2.0  # a longer wait for a lock is logged


@dataclass(frozen=True)
class StageSpec:
    """One stage of the pipeline.

    Attributes:
        name: Name of the stage and of its directory inside the run directory.
        reads: Names of the stages whose directories it reads.
        run: ``run(config, inputs, out_dir)``: reads ``inputs[stage]``, writes into ``out_dir``, returns the
            metrics worth keeping (accuracies, chosen layers …) as a JSON-ready mapping; ``earlier_s`` among
            them is the time in seconds that interrupted attempts had spent.
        fingerprint: ``fingerprint(config)``: the part of the configuration that decides the result, JSON-ready.
        data: ``data(config)``: SHA-256 of each part of the data set that the stage reads.
        check: ``check(config, run_dir)`` raises errors before any image is read (None: no check).
        check_data: The same after the images were hashed; its third argument has the names of the stages that run.
        packages: Packages whose versions decide the result.
        version: Raised when the same options, inputs and packages produce another result than before.
        work: Description for the log.
        options: Sections of the configuration whose options the stage uses, for ``config.json``.
    """

    name: str
    reads: tuple[str, ...]
    run: Callable[[Any, Mapping[str, Path], Path], dict[str, Any]]
    fingerprint: Callable[[Any], dict[str, Any]]
    data: Callable[[Any], dict[str, str]]
    check: Callable[[Any, Path], None] | None = None
    check_data: Callable[[Any, Path, Collection[str]], None] | None = None
    packages: tuple[str, ...] = ()
    version: int = 1
    work: str = ""
    options: tuple[str, ...] = ()


@contextmanager
def lock_run(run_dir: Path, check: Callable[[], None] = lambda: None, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a run directory, creating the directory if needed.

    Args:
        run_dir: The directory.
        check: Raises an error if the command cannot run; called before anything is created.
        wait: Whether to wait while another kdedge is using it.

    Raises:
        BusyError: Another kdedge is using it.
        InputError: The directory cannot be written.
    """
    path = run_dir / ".lock"
    locked = path.exists()
    if not locked:
        check()
    elif not path.is_file() or path.stat().st_size:
        raise not_ours(path, "it is not an empty file")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=_SHORT_WAIT_S if wait else 0)
        except Timeout:
            if not wait:
                raise BusyError(
                    f"{run_dir} is in use by another kdedge process", "wait for it to end, or use another --out"
                ) from None
            log(f"waiting for another kdedge process that uses {run_dir}")
            lock.acquire()
    except OSError as error:
        raise InputError(
            f"cannot write to {run_dir}: {error.strerror or error}", "set --out to a writable directory"
        ) from error
    try:
        if locked:
            check()
        yield
    finally:
        lock.release()


def run_stage(spec: StageSpec, config: Any, run_dir: Path, *, force: bool = False, refresh: bool = False) -> bool:
    """Run one stage unless it is up to date.

    Args:
        spec: The stage.
        config: The resolved configuration of the run.
        run_dir: The run directory; must be locked by the caller.
        force: Run again even if everything matches.
        refresh: Run again if another version of the stage or of a package that decides the result made it.

    Returns:
        Whether the stage ran (False: it was skipped).

    Raises:
        InputError: An earlier stage is missing or damaged, or another input is bad.
        StageError: It could not do its work.
    """
    check_owned(run_dir, (spec.name,))
    target = run_dir / spec.name
    partial = partial_dir(run_dir, spec.name)
    recover(target)
    inputs = {name: run_dir / name for name in spec.reads}
    wanted: dict[str, Any] = {"config": spec.fingerprint(config), "inputs": _input_hashes(spec, config, run_dir)}
    reason = "--force was given" if force else _why_rerun(target, wanted)
    if not reason:
        other = _made_with_other_versions(spec, load_manifest(target))
        if not (other and refresh):
            log(f"{spec.name}: up to date, skipped" + (f" ({other}; --refresh makes it again)" if other else ""))
            return False
        reason = other
    wanted["version"] = spec.version
    why = f" ({reason})" if target.exists() else ""
    what = f": {spec.work}" if spec.work else ""
    log(f"{spec.name}: running{why}{what}")
    prepare_partial(partial, wanted, force=force)
    (partial / DIVERGED).unlink(missing_ok=True)
    # Before the stage runs, because the checkout can change during a long stage.
    attempts, start = note_attempt(partial), time.monotonic()
    rss_before_kb = reset_peak()
    try:
        with disk_errors(partial):
            metrics = spec.run(config, inputs, partial)
    except KdedgeError as error:
        error.args = (f"stage {spec.name}: {error}",)
        if isinstance(error, DivergenceError):
            write_json(partial / DIVERGED, str(error))
        raise
    elapsed_s = time.monotonic() - start + metrics.pop("earlier_s", 0.0)
    outputs = {
        path.relative_to(partial).as_posix(): file_sha256(path)
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    }
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "stage": spec.name,
        **wanted,
        "outputs": outputs,
        "facts": metrics,
        "commit": ", ".join(dict.fromkeys(attempt.commit for attempt in attempts if attempt.commit)) or None,
        "versions": attempts[-1].versions,
        "wall_s": round(elapsed_s, 2),
        "peak_rss_mb": peak_rss_mb(rss_before_kb),
    }
    write_json(partial / MANIFEST, sealed(manifest))
    replace_dir(partial, target)
    log(f"{spec.name}: done in {format_duration(manifest['wall_s'])}")
    return True


def why_rerun(spec: StageSpec, config: Any, run_dir: Path, *, any_config: bool = False) -> str:
    """Return why `run_stage` would run a stage again, or an empty string if it is up to date.

    Args:
        spec: The stage.
        config: The resolved configuration of the run.
        run_dir: The run directory.
        any_config: Whether to ignore its options and compare only its inputs and outputs.

    Raises:
        InputError: An earlier stage is missing or damaged, or another input is bad.
    """
    wanted = {} if any_config else {"config": spec.fingerprint(config)}
    return _why_rerun(run_dir / spec.name, {**wanted, "inputs": _input_hashes(spec, config, run_dir)})


def _made_with_other_versions(spec: StageSpec, manifest: Mapping[str, Any]) -> str:
    """Return the changed versions that decide a result (none: an empty string; old manifests have no versions)."""
    if "version" not in manifest:
        return ""
    made, now = manifest.get("versions", {}), versions()
    found: list[tuple[str, Any, Any]] = [(name, made.get(name), now.get(name)) for name in spec.packages]
    found.append((f"version of stage {spec.name}", manifest["version"], spec.version))
    return ", ".join(f"made with {name} {before}, now {after}" for name, before, after in found if before != after)


def _input_hashes(spec: StageSpec, config: Any, run_dir: Path) -> dict[str, str]:
    """Check every input directory against its manifest and return the hashes of its files."""
    hashes = {f"data/{part}": digest for part, digest in spec.data(config).items()}
    for stage in spec.reads:
        manifest = check_finished(run_dir / stage)
        hashes |= {f"{stage}/{name}": digest for name, digest in manifest["outputs"].items()}
    return hashes


def _why_rerun(target: Path, wanted: Mapping[str, Any]) -> str:
    """Return why a stage must run, or an empty string if its directory is up to date."""
    if not target.exists():
        return "no result yet"
    try:
        manifest = load_manifest(target)
    except InputError as error:
        return str(error)
    changed = changes(manifest, wanted)
    if changed:
        return "changed: " + ", ".join(changed[:4]) + (" …" if len(changed) > 4 else "")
    damage = output_damage(target, manifest)
    return f"output {damage}" if damage else ""

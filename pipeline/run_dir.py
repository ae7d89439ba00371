"""Run directories: where stages leave their files, and when a stage may be skipped.

A stage writes into ``RUN/.<stage>.partial`` and the directory is renamed to ``RUN/<stage>`` when it is complete, so a
killed run leaves the old artifact or the new one, never a mixture. In it, files whose names begin with a dot are
working files (checkpoints) and are deleted after that. What is not kdedge's is never replaced: `kdedge.ownership`.
``manifest.json`` holds what decided the result (configuration, SHA-256 of every input) and what came out (SHA-256 of
every output). A stage is skipped only if all three still match. Its commit is that of every attempt whose work is in
the result, oldest first.
"""

import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from kdedge.errors import InputError, KdedgeError
from kdedge.files import disk_errors, file_sha256, read_json, write_json
from kdedge.manifest import (
    MANIFEST_SCHEMA,
    check_finished,
    git_commit,
    has_mappings,
    load_manifest,
    output_damage,
    sealed,
    versions,
)
from kdedge.ownership import (
    MANIFEST,
    WANTED,
    check_owned,
    holds_nothing,
    is_partial,
    is_stage,
    not_ours,
    old_dir,
    partial_dir,
    remove_marked,
)
from kdedge.progress import format_duration, log, warn

__all__ = [
    "StageSpec",
    "changed_keys",
    "clean_up",
    "lock_run",
    "run_stage",
    "unfinished_config",
    "why_rerun",
]

# In a partial directory: by what code its work was done.
_ATTEMPTS = ".attempts.json"


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
        check: ``check(config, run_dir)``: refuses what cannot work, before any image is read; None: there is nothing.
        check_data: The same, after the images were hashed; ``names`` of the stages that run is its third argument.
        packages: Those whose versions decide the result.
        version: Raised when the same options, inputs and packages give another result than before.
        work: What it does, for the log.
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


@contextmanager
def lock_run(run_dir: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a run directory, creating the directory if needed.

    Args:
        run_dir: The directory.
        check: Raises what keeps the command from running; called before anything is created.

    Raises:
        InputError: The directory cannot be written, or another kdedge is using it.
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
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{run_dir} is in use by another kdedge process", "wait for it to end, or give another --out"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot write to {run_dir}: {error.strerror or error}", "give a writable directory with --out"
        ) from error
    try:
        if locked:
            check()
        yield
    finally:
        lock.release()


def run_stage(spec: StageSpec, config: Any, run_dir: Path, *, force: bool = False, refresh: bool = False) -> bool:
    """Run one stage unless its directory already holds what it would produce.

    Args:
        spec: The stage.
        config: The resolved configuration of the run.
        run_dir: The run directory; must be locked by the caller.
        force: Run again even if everything matches.
        refresh: Run again if the result was made with another version of the stage or of a package that decides it.

    Returns:
        Whether the stage ran (False: it was skipped).

    Raises:
        InputError: A stage that it reads is missing or damaged, or its own input is bad.
        StageError: It could not do its work.
    """
    check_owned(run_dir, (spec.name,))
    target = run_dir / spec.name
    partial = partial_dir(run_dir, spec.name)
    _recover(target)
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
    _prepare_partial(partial, wanted, force=force)
    # Before the stage runs: a checkout may move on while a long stage computes with the code it began with.
    attempts, start = _note_attempt(partial), time.monotonic()
    rss_before_kb = _reset_peak()
    try:
        with disk_errors(partial):
            metrics = spec.run(config, inputs, partial)
    except KdedgeError as error:
        error.args = (f"stage {spec.name}: {error}",)
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
        "peak_rss_mb": _peak_rss_mb(rss_before_kb),
    }
    write_json(partial / MANIFEST, sealed(manifest))
    _replace_dir(partial, target)
    log(f"{spec.name}: done in {format_duration(manifest['wall_s'])}")
    return True


def why_rerun(spec: StageSpec, config: Any, run_dir: Path, *, any_config: bool = False) -> str:
    """Return why a finished stage is not what `run_stage` would make now, or an empty string if it is.

    Args:
        spec: The stage.
        config: The resolved configuration of the run.
        run_dir: The run directory.
        any_config: Whether its own options may be others, so that only what it read and wrote counts.

    Raises:
        InputError: A stage that it reads is missing or damaged, or its own input is bad.
    """
    wanted = {} if any_config else {"config": spec.fingerprint(config)}
    return _why_rerun(run_dir / spec.name, {**wanted, "inputs": _input_hashes(spec, config, run_dir)})


def _made_with_other_versions(spec: StageSpec, manifest: Mapping[str, Any]) -> str:
    """Return which versions that decide a result differ now (empty: none, or the manifest is too old to tell)."""
    if "version" not in manifest:
        return ""
    made, now = manifest.get("versions", {}), versions()
    changes: list[tuple[str, Any, Any]] = [(name, made.get(name), now.get(name)) for name in spec.packages]
    changes.append((f"version of stage {spec.name}", manifest["version"], spec.version))
    return ", ".join(f"made with {name} {before}, now {after}" for name, before, after in changes if before != after)


def _largest_rss_kb() -> int:
    """Return the largest resident memory of this process so far, or since `_reset_peak`, in KiB (0: unknown)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def _reset_peak() -> int:
    """Let Linux forget the largest resident memory so far; return what there is to compare with (in KiB)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _largest_rss_kb()
    return 0


def _peak_rss_mb(before_kb: int) -> float | None:
    """Return the largest resident memory since `_reset_peak` returned ``before_kb``, in 10^6 bytes.

    None if that is unknown: what came before used as much, or the system does not tell.
    """
    peak_kb = _largest_rss_kb()
    return round(peak_kb * 1024 / 1e6, 1) if peak_kb > before_kb else None


def _input_hashes(spec: StageSpec, config: Any, run_dir: Path) -> dict[str, str]:
    """Check every input directory against its manifest and return the hashes of what is in it."""
    hashes = {f"data/{part}": digest for part, digest in spec.data(config).items()}
    for stage in spec.reads:
        manifest = check_finished(run_dir / stage)
        hashes |= {f"{stage}/{name}": digest for name, digest in manifest["outputs"].items()}
    return hashes


def unfinished_config(run_dir: Path, stage: str) -> dict[str, Any]:
    """Return the configuration of the unfinished work at a stage (empty: there is none, or its note is damaged)."""
    note = _read_wanted(partial_dir(run_dir, stage))
    return dict(note["config"]) if note else {}


def _why_rerun(target: Path, wanted: Mapping[str, Any]) -> str:
    """Return why a stage must run, or an empty string if its directory is up to date."""
    if not target.exists():
        return "no result yet"
    try:
        manifest = load_manifest(target)
    except InputError as error:
        return str(error)
    changes = _changes(manifest, wanted)
    if changes:
        return "changed: " + ", ".join(changes[:4]) + (" …" if len(changes) > 4 else "")
    damage = output_damage(target, manifest)
    return f"output {damage}" if damage else ""


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the dotted keys whose values differ between two nested mappings."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += [f"{key}.{inner}" for inner in changed_keys(before, after)]
        elif before != after:
            changed.append(key)
    return changed


def _changes(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """List what decided a result or unfinished work and would be different now."""
    return [name.replace(".", " ", 1) for name in changed_keys({part: made[part] for part in wanted}, wanted)]


def _prepare_partial(partial: Path, wanted: Mapping[str, Any], *, force: bool) -> None:
    """Keep the work of an interrupted run of the same stage, or start with an empty directory."""
    note = partial / WANTED
    if partial.exists():
        unfinished = _read_wanted(partial)
        if unfinished == wanted and not force:
            return
        if unfinished is None and _working_files(partial):
            warn(f"{note} is missing or damaged: the unfinished work next to it is not used, the stage starts over")
        elif unfinished is not None and not force:
            changed = _changes(unfinished, wanted)
            if changed and all(key.startswith("config runtime.") for key in changed):
                names = ", ".join(key.removeprefix("config runtime.") for key in changed)
                raise InputError(
                    f"{partial} holds unfinished work made with another {names}; continuing would change its bits",
                    "run with the same --threads, --precision and --device on the same kind of CPU, "
                    f"or start the stage over: `kdedge {partial.name[1:].removesuffix('.partial')} "
                    f"--out {partial.parent} --force`",
                )
            log(f"starting over: changed since the interrupted run: {', '.join(changed[:4])}")
        remove_marked(partial, WANTED)
    with disk_errors(partial):
        partial.mkdir(parents=True)
    write_json(note, wanted)


def _read_wanted(partial: Path) -> dict[str, Any] | None:
    """Read what unfinished work is for (None: there is no such note, or it is damaged)."""
    try:
        wanted = read_json(partial / WANTED)
    except (OSError, ValueError):
        return None
    return {"version": 1, **wanted} if has_mappings(wanted, ("config", "inputs")) else None


class _Attempt(NamedTuple):
    """By what code an attempt at a stage computed, and the time of the working files that it found (0: none)."""

    commit: str | None
    versions: dict[str, str | None]
    found_ns: int


def _note_attempt(partial: Path) -> list[_Attempt]:
    """Add this attempt to those whose work it goes on with, oldest first.

    Work is what lies in working files; an attempt that left none, or those that it found, is not among them. Warns of
    work by other versions of the packages that decide results.
    """
    note = partial / _ATTEMPTS
    working = _working_files(partial)
    found_ns = max((path.stat().st_mtime_ns for path in working), default=0)
    attempts = _read_attempts(note) if working and note.exists() else []
    attempts = [*attempts[:-1], *(attempt for attempt in attempts[-1:] if attempt.found_ns != found_ns)]
    attempts.append(_Attempt(git_commit(), versions(), found_ns))
    for before, now in pairwise(attempt.versions for attempt in attempts[-2:]):
        for name in changed_keys(before, now):
            warn(
                f"work begun with {name} {before.get(name)} goes on with {now.get(name)}: "
                "its bits may not be those of a run in one go"
            )
    write_json(note, attempts)
    return attempts


def _read_attempts(note: Path) -> list[_Attempt]:
    """Read the attempts that were noted; a damaged note is ignored with a warning."""
    try:
        attempts = [_Attempt(*attempt) for attempt in read_json(note)]
        if all(isinstance(one.versions, dict) and isinstance(one.commit, str | None) for one in attempts):
            return attempts
        reason = "it holds no list of attempts"
    except (OSError, ValueError, TypeError) as error:
        reason = str(error)
    warn(f"{note} is damaged and ignored ({reason}): the manifest will not name the commits of earlier attempts")
    return []


def _replace_dir(new: Path, target: Path) -> None:
    """Put ``new`` in the place of ``target``; `_recover` finishes the exchange after a crash."""
    if not holds_nothing(target):
        target.rename(old_dir(target.parent, target.name))
    elif target.exists():
        target.rmdir()
    new.rename(target)
    _recover(target)


def clean_up(run_dir: Path, stages: Iterable[str]) -> None:
    """Remove what killed commands left of these stages in a locked run directory, but no work that can be resumed."""
    for stage in stages:
        _recover(run_dir / stage)
        partial = partial_dir(run_dir, stage)
        if is_partial(partial) and not _working_files(partial):
            with suppress(OSError):
                remove_marked(partial, WANTED)


def _recover(target: Path) -> None:
    """Finish or undo an exchange of directories that was interrupted, or that is to be finished now."""
    old = old_dir(target.parent, target.name)
    if is_stage(old, target.name) and holds_nothing(target):
        if target.exists():
            target.rmdir()
        old.rename(target)
    if (target / WANTED).exists() and is_stage(target, target.name):
        # Not every file with a dot: editors, git and file managers leave such, too.
        for path in [*_working_files(target), target / _ATTEMPTS, target / WANTED]:
            path.unlink(missing_ok=True)
    if is_stage(old, target.name) and is_stage(target, target.name):
        with suppress(OSError):  # the result is complete: what cannot be deleted is left to the next command
            _discard(old, target)


def _discard(old: Path, new: Path) -> None:
    """Delete an earlier result of a stage; files that somebody else put into it move to the new one."""
    if not old.is_symlink():
        known = {MANIFEST, *read_json(old / MANIFEST)["outputs"]}
        for path in sorted(path for path in old.rglob("*") if not path.is_dir() or path.is_symlink()):
            name = path.relative_to(old)
            if name.as_posix() not in known:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(_free_name(new / name))
    remove_marked(old, MANIFEST)


def _free_name(path: Path) -> Path:
    """Return this path, or one that nothing has yet."""
    while path.exists() or path.is_symlink():
        path = path.with_name(f"{path.name}.old")
    return path


def _working_files(directory: Path) -> list[Path]:
    """Return the files that a stage resumes from, which are none of its results."""
    return [path for path in directory.glob(".*") if path.is_file() and not path.name.startswith((WANTED, _ATTEMPTS))]

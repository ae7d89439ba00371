"""``manifest.json``: options, inputs and outputs of a finished stage.

It has the SHA-256 of every input and output, and of its own content (`SEAL`).
"""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from kdedge import __version__
from kdedge.errors import InputError, command
from kdedge.files import file_sha256, json_bytes, read_json
from kdedge.ownership import MANIFEST

__all__ = [
    "MANIFEST_SCHEMA",
    "ONNXRUNTIMES",
    "SEAL",
    "check_finished",
    "git_commit",
    "has_mappings",
    "load_manifest",
    "output_damage",
    "sealed",
    "versions",
]

SEAL = "content_sha256"
MANIFEST_SCHEMA = 1
ONNXRUNTIMES = ("onnxruntime", *(f"onnxruntime-{kind}" for kind in ("gpu", "openvino", "qnn", "directml")))
"""Distributions of onnxruntime, which overwrite each other."""


def load_manifest(stage_dir: Path) -> dict[str, Any]:
    """Read ``manifest.json`` of a finished stage.

    Raises:
        InputError: The manifest is missing or damaged.
    """
    path = stage_dir / MANIFEST
    hint = f"run `{command(stage_dir.name, '--out', stage_dir.parent)}` first"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{stage_dir} holds no finished stage: {MANIFEST} is missing", hint) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}", hint) from error
    parts = ("config", "inputs", "outputs", "facts")
    if not has_mappings(manifest, parts) or manifest.get("schema") != MANIFEST_SCHEMA:
        raise InputError(f"{path} is not a kdedge manifest of schema {MANIFEST_SCHEMA}", hint)
    return dict(manifest)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the SHA-256 of its other keys under the last key, `SEAL`."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return {**content, SEAL: hashlib.sha256(json_bytes(content)).hexdigest()}


def has_mappings(value: Any, keys: tuple[str, ...]) -> bool:
    """Return whether a value is a mapping with a mapping under each of these keys."""
    return isinstance(value, dict) and all(isinstance(value.get(key), dict) for key in keys)


def check_finished(directory: Path) -> dict[str, Any]:
    """Return the manifest of a finished stage after checking the hashes of its files.

    Raises:
        InputError: The stage is not finished, or a file was altered.
    """
    manifest = load_manifest(directory)
    if damage := output_damage(directory, manifest):
        raise InputError(
            f"{directory / damage} since stage {directory.name} wrote it",
            f"run `{command(directory.name, '--out', directory.parent)}` to repeat it",
        )
    return manifest


def output_damage(stage_dir: Path, manifest: Mapping[str, Any]) -> str:
    """Return the first output of a finished stage with another hash, and the reason. Empty: none."""
    for name, digest in manifest["outputs"].items():
        path = stage_dir / name
        if not path.is_file() or file_sha256(path) != digest:
            return f"{name} {'was altered' if path.is_file() else 'is missing'}"
    return ""


def versions() -> dict[str, str | None]:
    """Return the versions of python, kdedge and the packages that decide results (None: not installed)."""
    found: dict[str, str | None] = {"python": platform.python_version(), "kdedge": __version__}
    for name in ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    for build in ONNXRUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            found["onnxruntime"] = found["onnxruntime"] or metadata.version(build)
    return found


def git_commit() -> str | None:
    """Return the commit of the kdedge checkout (with ``-dirty`` if changed), or None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=root, capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None

"""Verifies a bundle on the target machine: every file, and the outputs of both models.

    kdedge verify BUNDLE
    kdedge verify --sha256 HEX BUNDLE    # the SHA-256 that `kdedge bundle` printed: the manifest was not replaced
    kdedge verify --key PUB BUNDLE       # the holder of this key signed the manifest
    kdedge verify BUNDLE --emulate haswell --emulate cortex-a72    # on the build machine, with qemu

Requires only numpy and onnxruntime. Files are compared with the SHA-256 in ``manifest.json``, and the manifest with its
own. Both models then run on the golden inputs, and their logits are compared with the golden logits. This detects
accidents. It does not detect an attacker, who can alter the manifest too, unless its SHA-256 or the key that signed it
is known from elsewhere.
`emulate_bundle` runs the INT8 model on emulated CPUs.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.host import wrong_host
from kdedge.benchmarks.report.file import read_report
from kdedge.benchmarks.session import Model, open_model, run_model
from kdedge.errors import InputError, StageError
from kdedge.export.bundle.contents import BUNDLE_FILES, COPIED, GOLDEN_INPUTS, GOLDEN_LOGITS, MODELS, bundle_hint
from kdedge.files import file_sha256, json_bytes, read_json
from kdedge.manifest import MANIFEST_SCHEMA, SEAL, sealed
from kdedge.ownership import MANIFEST, SIGNATURE
from kdedge.progress import log, warn

__all__ = ["TOLERANCE", "check_flips", "emulate_bundle", "read_manifest", "verify_bundle"]

# Relative to the largest absolute golden logit, for both models. CPUs sum FP32 in different orders (about 1e-6); the
# portable INT8 format computes the same integers everywhere and scales only the logits in float.
TOLERANCE = 1e-3
# Files of file managers, and those that Python writes for `import predict`, and would execute.
_LEFT_BEHIND = re.compile(r"(?i:\.ds_store|thumbs\.db|desktop\.ini)")
_COMPILED = re.compile(r"__pycache__/predict\.[\w.-]+\.pyc")
# The keys of a manifest before it had a seal.
_UNSEALED = frozenset(
    {"schema", "stage", "config", "inputs", "outputs", "facts", "commit", "versions", "wall_s", "peak_rss_mb"}
)
_REPEATED = ("run", "teacher", "student", "gate")  # keys of report.json that are also in the manifest's history
_HINT = "do not use it: copy it again from its source, or build it again with `kdedge bundle`"


def verify_bundle(path: Path, *, sha256: str = "", key: Path | None = None) -> dict[str, Any]:
    """Verify a bundle.

    Args:
        path: The bundle.
        sha256: The SHA-256 that its manifest must have, 64 hexadecimal digits; empty: any.
        key: The public key that must have signed its manifest; None: any or none.

    Returns:
        ``bundle``, ``files`` and ``golden_images`` (counts), ``manifest_sha256`` (to compare with the sender's),
        ``signed`` (whether it has a signature) and ``signed_by`` (fingerprint of ``key``; None: not checked),
        ``passed`` (whether the gate passed), and for ``fp32`` and ``int8`` the largest logit difference, absolute
        (``max_abs_diff``) and relative to the largest logit (``max_rel_diff``).

    Raises:
        InputError: There is no bundle at ``path``, ``sha256`` is not a SHA-256, or ``key`` is not a key.
        StageError: The manifest has another SHA-256 or no signature of ``key``, a file is altered, missing or extra,
            the labels do not fit the models, the manifest contradicts the report, or a model returns other outputs;
            the message lists all.
    """
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(
            f"--sha256 {sha256!r} is not a SHA-256", "expected the 64 hexadecimal digits of `kdedge bundle`"
        )
    manifest = read_manifest(path)
    found = file_sha256(path / MANIFEST)
    if sha256 and found != sha256.lower():
        raise StageError(f"{path} is another bundle: {MANIFEST} has SHA-256 {found}, expected {sha256.lower()}", _HINT)
    signed_by = None
    if key:
        from kdedge.export.bundle.signing import check_signature

        signed_by = check_signature(path, key)
    problems = _check_files(path, manifest["outputs"], compiled=not (sha256 or key))
    if problems:
        raise StageError(f"{path} was altered: {'; '.join(problems)}", _HINT)
    if SEAL not in manifest:
        warn(f"{MANIFEST} of this older bundle has no SHA-256 of its own: damage to it may go unnoticed")
    result: dict[str, Any] = {
        "bundle": str(path),
        "files": len(manifest["outputs"]),
        "manifest_sha256": found,
        "signed": (path / SIGNATURE).exists(),
        "signed_by": signed_by,
        "passed": manifest["facts"].get("passed") is True,
    }
    inputs = _load_array(path / GOLDEN_INPUTS)
    result["golden_images"] = len(inputs)
    models = {kind: open_model(path / name) for kind, name in MODELS.items()}
    if problem := wrong_host(models["int8"]):
        warn(problem)
    problems = _check_labels(path / "labels.txt", models.values())
    try:
        problems += _check_history(manifest, read_report(path / "report.json"))
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise StageError(f"{path} contradicts itself: {'; '.join(problems)}", _HINT)
    for kind, model in models.items():
        result[kind] = _check_outputs(model, inputs, _load_array(path / GOLDEN_LOGITS[kind]), problems)
    if problems:
        raise StageError(
            f"{path} returns other outputs here than on the machine that built it: {'; '.join(problems)}",
            "this CPU or onnxruntime version computes other values; see `kdedge doctor`",
        )
    return result


def emulate_bundle(
    path: Path, cpus: Sequence[str], tests: tuple[Sequence[int], npt.NDArray[Any]] | None = None
) -> list[dict[str, Any]]:
    """Run the INT8 model of a verified bundle on emulated CPUs, on its golden inputs and optional test images.

    Args:
        path: The bundle.
        cpus: Keys of `kdedge.benchmarks.emulate.cpus.CPUS`.
        tests: Numbers of the test images in their data set, and the images or windows.

    Returns:
        For every CPU the keys of `kdedge.benchmarks.emulate.emulator.Emulation.as_dict`, with a text such as
        ``golden 3`` or ``test 170`` as ``image``, and ``model_sha256``, ``golden_images`` and ``test_images`` (counts)
        and ``golden_max_abs_diff`` (largest difference from the golden logits).

    Raises:
        InputError: Unknown CPU, or test images that do not fit the model.
        StageError: qemu or a program in it is missing or fails.
    """
    from kdedge.benchmarks.emulate.emulator import check_emulators, emulate

    check_emulators(cpus)
    pixels = _load_array(path / GOLDEN_INPUTS)
    golden = _load_array(path / GOLDEN_LOGITS["int8"])
    names = [f"golden {number}" for number in range(len(golden))]
    if tests is not None:
        names += [f"test {number}" for number in tests[0]]
        pixels = np.concatenate([pixels, tests[1]])
    model, rows = path / MODELS["int8"], []
    for cpu in dict.fromkeys(cpus):
        result = emulate(model, pixels, cpu)
        row = result.as_dict() | {"model_sha256": file_sha256(model)}
        row["flipped"] = [{**flip, "image": names[flip["image"]]} for flip in row["flipped"]]
        row["golden_images"], row["test_images"] = len(golden), len(pixels) - len(golden)
        row["golden_max_abs_diff"] = float(np.abs(result.logits[: len(golden)] - golden).max())
        rows.append(row)
    return rows


def check_flips(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """Refuse a model with other predictions on another CPU.

    Args:
        rows: From `emulate_bundle`.
        labels: Class names.

    Raises:
        StageError: A prediction differs; the message lists up to 10 for every CPU.
    """
    problems = []
    for row in rows:
        listed = [f"{f['image']}: {labels[f['emulated']]} for {labels[f['native']]}" for f in row["flipped"][:10]]
        more = ", …" if row["flips"] > len(listed) else ""
        if listed:
            count = f"{row['flips']} of {row['images']} inputs"
            problems.append(f"{row['cpu']} predicts another class for {count} ({', '.join(listed)}{more})")
    if problems:
        raise StageError(
            f"the INT8 model is not portable: {'; '.join(problems)}",
            "do not ship it for these CPUs, or quantize again with --target portable (the default)",
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a bundle, without checking its files.

    Raises:
        InputError: There is no bundle at ``path``.
        StageError: The manifest is damaged.
    """
    file = path / MANIFEST
    hint = bundle_hint(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; expected a bundle", hint)
    if not file.is_file():
        raise InputError(f"{path} is not a bundle: {MANIFEST} is missing", hint)
    try:
        manifest = read_json(file)
    except (OSError, ValueError) as error:
        raise StageError(f"{file} cannot be read: {error}", _HINT) from error
    parts = ("config", "inputs", "outputs", "facts")
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(part), dict) for part in parts):
        raise StageError(f"{file} is not a kdedge manifest with {', '.join(parts)}", _HINT)
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise StageError(f"{file} is not a kdedge manifest of schema {MANIFEST_SCHEMA}", _HINT)
    # The bytes, too: the seal does not cover white space.
    if SEAL in manifest and (sealed(manifest)[SEAL] != manifest[SEAL] or json_bytes(manifest) != file.read_bytes()):
        raise StageError(f"{file} was altered: it does not have the SHA-256 that it states", _HINT)
    if SEAL not in manifest and (unknown := sorted(manifest.keys() - _UNSEALED)):
        raise StageError(f"{file} was altered: it has the unknown key {', '.join(unknown)}", _HINT)
    if manifest.get("stage") != "bundle":
        raise InputError(f"{path} holds the stage {manifest.get('stage')!r}, not a bundle", hint)
    return dict(manifest)


def _check_files(path: Path, expected: dict[str, str], *, compiled: bool) -> list[str]:
    """Compare the files under ``path`` with the manifest; return the problems.

    Args:
        path: The bundle.
        expected: SHA-256 of the files in the manifest, by name.
        compiled: Whether files that Python compiles may be there, which an attacker could have written.
    """
    present = {item.relative_to(path).as_posix() for item in path.rglob("*") if not _holds_more(item)}
    extra = present - expected.keys() - {MANIFEST, SIGNATURE}
    ignored = {
        name
        for name in extra
        if (_LEFT_BEHIND.fullmatch(name) or (compiled and _COMPILED.fullmatch(name))) and (path / name).is_file()
    }
    if ignored:
        log(f"ignored, left by a file manager or Python: {', '.join(sorted(ignored))}")
    problems = [f"{name} is missing from the manifest" for name in sorted(BUNDLE_FILES - expected.keys())]
    problems += [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} does not belong to it" for name in sorted(extra - ignored)]
    for name in sorted(present & expected.keys()):
        file = path / name
        if file.is_symlink() or not file.is_file():
            problems.append(f"{name} is not a regular file")
        elif file_sha256(file) != expected[name]:
            problems.append(f"{name} was altered")
    return problems


def _holds_more(path: Path) -> bool:
    """Return whether a path is a folder that is not empty."""
    return path.is_dir() and not path.is_symlink() and next(path.rglob("*"), None) is not None


def _check_labels(path: Path, models: Iterable[Model]) -> list[str]:
    """Compare the labels with the classes of the models; return the problems."""
    labels = tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())
    problems = []
    for model in models:
        if len(labels) != model.classes:
            problems.append(f"labels.txt has {len(labels)} labels, {model.path.name} returns {model.classes} logits")
        elif model.class_names not in (None, labels):
            problems.append(f"labels.txt names other classes than {model.path.name}")
    return problems


def _check_history(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Compare the history in the manifest with the report and the files; return the problems."""
    passed, history = (manifest["facts"].get(key) for key in ("passed", "history"))
    problems = []
    if (passed is True) != (report["gate"]["verdict"] == "passed"):
        problems.append(f"{MANIFEST} has passed: {json.dumps(passed)}, which contradicts report.json")
    for part in _REPEATED:
        if not isinstance(history, dict) or history.get(part) != report[part]:
            problems.append(f"{MANIFEST} has another {part} than report.json")
    for name, stage in COPIED.items():
        if manifest["inputs"].get(f"{stage}/{name}") != manifest["outputs"][name]:
            problems.append(f"{name} is not the file of the stage {stage} in {MANIFEST}")
    return problems


def _check_outputs(
    model: Model, inputs: npt.NDArray[Any], golden: npt.NDArray[np.float32], problems: list[str]
) -> dict[str, float]:
    """Run a model on the golden inputs; append to ``problems`` and return the logit differences."""
    name = model.path.name
    if not model.spec.accepts(inputs) or golden.dtype != np.float32:
        problems.append(f"the golden arrays do not fit {name}")
        return {}
    logits = run_model(model, inputs)
    if logits.shape != golden.shape:
        problems.append(f"{name}: logits {list(logits.shape)}, golden {list(golden.shape)}")
        return {}
    diff, scale = float(np.abs(logits - golden).max()), float(np.abs(golden).max())
    flips = int((logits.argmax(1) != golden.argmax(1)).sum())
    # Written so that NaN fails too.
    if not diff <= TOLERANCE * scale:
        problems.append(f"{name}: largest logit difference {diff:.3g}, allowed {TOLERANCE * scale:.3g}")
    if flips:
        problems.append(f"{name}: {flips} of {len(golden)} predictions differ")
    return {"max_abs_diff": diff, "max_rel_diff": diff / scale if scale else 0.0}


def _load_array(path: Path) -> npt.NDArray[Any]:
    """Load a ``.npy`` file without pickles."""
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StageError(f"{path} is not a readable .npy file: {error}", _HINT) from error
    return array

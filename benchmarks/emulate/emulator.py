"""Run a model on other CPUs under qemu's user emulation and compare it with its native run.

An INT8 model can predict other classes on another CPU: without integer dot products, products of 8-bit weights overflow
the 16-bit sums of the x86 kernels. `emulate` detects it before shipping, for any model of kdedge's format:

    kdedge verify BUNDLE --emulate haswell --emulate cortex-a76 --emulate cortex-a72

Emulated x86 CPUs run the Python, numpy and onnxruntime of this process, arm64 CPUs those of
`kdedge.benchmarks.emulate.arm64_root`. The features that the program sees are checked: an old qemu silently lacks AVX2,
and other kernels would run.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.emulate import emulated
from kdedge.benchmarks.emulate.arm64_root import ONNXRUNTIME, prepare_arm64_root, root_path
from kdedge.benchmarks.emulate.cpus import CPUS
from kdedge.benchmarks.session import Model, import_onnxruntime, open_model
from kdedge.errors import InputError, StageError
from kdedge.files import scratch_dir
from kdedge.parsing import closest
from kdedge.progress import track

__all__ = ["CPUS", "Emulation", "check_emulators", "emulate", "emulation_checks"]

Logits = npt.NDArray[np.float32]

# The native run has the same batches, so the block size of a float kernel cannot make a difference.
_BATCH = 8


@dataclass(frozen=True)
class Emulation:
    """The results of a model on an emulated CPU and on this one.

    Attributes:
        cpu: The emulated CPU, a key of `CPUS`.
        qemu: Emulator and version.
        onnxruntime: Its version under emulation; ``native_onnxruntime`` is the version here.
        flipped: ``(image, native class, emulated class)`` for every prediction that differs.
        max_abs_diff: Largest absolute difference of a logit.
        max_rel_diff: The same, relative to the largest absolute native logit.
        seconds: Duration of the emulation, with its start.
        logits: Emulated logits, ``[N, C] float32``.
        native_logits: Native logits, ``[N, C] float32``.
    """

    cpu: str
    qemu: str
    onnxruntime: str
    native_onnxruntime: str
    flipped: tuple[tuple[int, int, int], ...]
    max_abs_diff: float
    max_rel_diff: float
    seconds: float
    logits: Logits = field(repr=False)
    native_logits: Logits = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the logits for JSON, with the counts ``images`` and ``flips``."""
        left_out = ("logits", "native_logits", "flipped")
        row = {name: value for name, value in vars(self).items() if name not in left_out}
        flipped = [dict(zip(("image", "native", "emulated"), flip, strict=True)) for flip in self.flipped]
        return row | {"images": len(self.logits), "flips": len(flipped), "flipped": flipped}


def check_emulators(cpus: Iterable[str]) -> None:
    """Check that these CPUs can be emulated; build the arm64 root if one needs it.

    Raises:
        InputError: Unknown CPU.
        StageError: qemu is missing, or the arm64 root is missing and cannot be built.
    """
    for name in cpus:
        _command(name)


def emulate(model: Path, inputs: npt.NDArray[Any], cpu: str) -> Emulation:
    """Run a model here and on an emulated CPU. Different predictions are a result, not an error.

    Args:
        model: An ONNX model of kdedge's format, INT8 or not.
        inputs: Images or windows, N at least 1; about 8 images a second for 70 MMAC.
        cpu: A key of `CPUS`.

    Raises:
        InputError: Unknown CPU, unusable model, or images that do not fit it.
        StageError: qemu or the arm64 root is missing, qemu shows the wrong CPU, or the program in it crashed.
    """
    command, folders = _command(cpu)
    opened = open_model(model)
    if not opened.spec.accepts(inputs):
        raise InputError(
            f"{model} cannot take inputs {inputs.dtype} {list(inputs.shape)}", f"expected {opened.spec.type_text}"
        )
    native = _native_logits(opened, inputs)
    start = time.monotonic()
    with scratch_dir() as scratch:
        source, outputs = Path(scratch) / "inputs.npy", Path(scratch) / "logits.npy"
        np.save(source, inputs)
        files = (model.absolute(), source, outputs)
        seen = _run([*command, *map(str, (*files, _BATCH, *folders))], cpu, len(inputs))
        logits: Logits = np.load(outputs, allow_pickle=False)
    if logits.shape != native.shape:
        raise StageError(f"{cpu}: {model} returns logits {list(logits.shape)}, natively {list(native.shape)}")
    diff = np.abs(logits.astype(np.float64) - native)
    known = np.isfinite(diff)
    largest, scale = float(diff.max(where=known, initial=0.0)), float(np.abs(native).max())
    flips = np.flatnonzero((logits.argmax(1) != native.argmax(1)) | ~known.all(1))
    return Emulation(
        cpu=cpu,
        qemu=f"{Path(command[0]).name} {_qemu_version(command[0])}",
        onnxruntime=seen["onnxruntime"],
        native_onnxruntime=import_onnxruntime().__version__,
        flipped=tuple((int(i), int(native[i].argmax()), int(logits[i].argmax())) for i in flips),
        max_abs_diff=largest,
        max_rel_diff=largest / scale if scale else 0.0,
        seconds=round(time.monotonic() - start, 1),
        logits=logits,
        native_logits=native,
    )


def emulation_checks() -> list[dict[str, str]]:
    """Return for each CPU a check, as in `kdedge.benchmarks.host.doctor`, of whether it can be emulated here."""
    checks = []
    for name, cpu in CPUS.items():
        try:
            qemu = _find_qemu(name)
        except StageError as error:
            checks.append({"name": f"emulate {name}", "status": "missing", "detail": str(error), "fix": error.hint})
            continue
        detail = f"{cpu.note}: {Path(qemu).name} {_qemu_version(qemu)}"
        if cpu.arm64 and not root_path().is_dir():
            detail += f"; onnxruntime {ONNXRUNTIME} for arm64 is downloaded at the first use"
        checks.append({"name": f"emulate {name}", "status": "ok", "detail": detail, "fix": ""})
    return checks


def _find_qemu(name: str) -> str:
    """Return the path of the emulator for a CPU."""
    if name not in CPUS:
        raise InputError(f"cannot emulate the CPU {name!r}{closest(name, CPUS)}", f"expected one of {', '.join(CPUS)}")
    cpu = CPUS[name]
    if not cpu.arm64 and platform.machine().lower() not in ("x86_64", "amd64"):
        raise StageError(f"emulating {name} needs an x86-64 host; this one is {platform.machine()}", "use a PC")
    found = shutil.which(cpu.qemu) or shutil.which(f"{cpu.qemu}-static")
    if found is None:
        raise StageError(
            f"emulating {name} needs {cpu.qemu}, which is not installed", "apt install qemu-user  (7.2 or newer)"
        )
    return found


def _command(name: str) -> tuple[list[str], list[Path]]:
    """Return the command up to the program, and the program's import folders."""
    qemu = [_find_qemu(name), "-cpu", CPUS[name].model]
    # Without the user's site: neither .pth files nor PYTHONPATH may change the imports.
    isolated = ["-I", "-S", "-B", str(Path(emulated.__file__).absolute())]
    if CPUS[name].arm64:
        root = prepare_arm64_root()
        return [*qemu, "-L", str(root.path), str(root.python), *isolated], [root.site]
    packages = (np.__file__, import_onnxruntime().__file__)
    folders = list(dict.fromkeys(Path(file).absolute().parent.parent for file in packages))
    return [*qemu, sys.executable, *isolated], folders


def _native_logits(model: Model, inputs: npt.NDArray[Any]) -> Logits:
    """Return the logits of the model on this CPU."""
    return np.concatenate([model.logits(inputs[start : start + _BATCH]) for start in range(0, len(inputs), _BATCH)])


def _run(command: list[str], name: str, total: int) -> dict[str, Any]:
    """Run the program under emulation, with progress; return its first line of values."""
    seen: dict[str, Any] = {}
    done = 0
    with tempfile.TemporaryFile("w+", errors="replace") as errors, track(f"emulating {name}", total) as progress:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if not line.startswith("@"):
                        continue  # libraries print warnings about an unknown CPU
                    values = json.loads(line[1:])
                    if "images" in values:
                        progress.advance(values["images"] - done)
                        done = values["images"]
                    else:
                        seen = values
                        _check_features(name, set(values["features"]))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            printed = [line.strip() for line in errors if line.strip()]
            last = printed[-1] if printed else f"exit code {process.returncode}"
            hint = f"rebuild its root: remove {root_path()}" if CPUS[name].arm64 else "see `kdedge doctor`"
            raise StageError(f"emulating {name} ended after {done} of {total} images: {last}", hint)
    return seen


def _check_features(name: str, features: set[str]) -> None:
    """Refuse an emulated CPU that would run other kernels than the real one."""
    cpu = CPUS[name]
    wrong = [f"no {feature}" for feature in cpu.has if feature not in features]
    wrong += [feature for feature in cpu.lacks if feature in features]
    if wrong:
        raise StageError(
            f"{cpu.qemu} shows another CPU than {name}: the program sees {', '.join(wrong)}", "use qemu 7.2 or newer"
        )


def _qemu_version(qemu: str) -> str:
    """Return the version of an emulator."""
    try:
        text = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    match = re.search(r"version (\S+)", text)
    return match[1] if match else "of unknown version"

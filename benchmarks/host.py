"""The machine that measures: processor, memory, system, execution providers, and why one is missing.

`host_record` is the ``host`` section of ``report.json``; `doctor` adds what is installed and what to do about what
is not, for ``kdedge doctor``. Nothing here imports torch.
"""

import ctypes.util
import functools
import importlib.util
import io
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from kdedge import __version__
from kdedge.benchmarks.session import CUDA, Model, import_onnxruntime, open_model
from kdedge.errors import InputError
from kdedge.install import install_command
from kdedge.machine import cpu_info, cpu_quota, usable_cores
from kdedge.progress import printable

__all__ = [
    "artifact_check",
    "cuda_problem",
    "doctor",
    "format_doctor",
    "host_kind",
    "host_record",
    "tensorrt_problem",
    "wrong_host",
]

# Instruction sets that decide how fast, or how exactly, INT8 and low-precision kernels run: our name, and the
# names under which Linux and cpuid list them.
_ISA = {
    "avx2": ("avx2",),
    "avx512f": ("avx512f",),
    "avx512_vnni": ("avx512_vnni", "avx512vnni"),
    "avx_vnni": ("avx_vnni", "avxvnni"),
    "avx512_bf16": ("avx512_bf16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "neon": ("asimd", "neon"),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
}
_PACKAGES = (
    ("torch", "train, distill and export (the extra train)"),
    ("torchvision", "teachers and their weights (the extra train)"),
    ("onnx", "export and quantize (the extra train)"),
    ("matplotlib", "figures in the report (the extra train)"),
    ("PIL", "images other than .npy"),
)
_TRAINING = ("torch", "torchvision", "onnx")
_TENSORRT = "TensorrtExecutionProvider"
_MIXTURE = "mixture"
_ONLY_GPU = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
_ANYWHERE = "`kdedge quantize --target portable` makes one that is right everywhere"


def host_record() -> dict[str, Any]:
    """Describe this machine.

    Returns:
        ``cpu``, ``board`` (single-board computers, else None), ``cores`` (logical CPUs that this process may use),
        ``cpu_quota`` (how many CPUs' time its control group may use; None: no limit), ``physical_cores``, ``isa`` (the
        instruction sets that matter for INT8), ``memory_bytes``, ``os``, ``python``, ``governor``, ``gpu`` (None: none
        found), ``onnxruntime`` (version), ``providers``, ``cuda_problem`` and ``tensorrt_problem`` (None: the provider
        is there; TensorRT is not measured).

    Raises:
        InputError: onnxruntime is missing or broken.
    """
    import psutil

    ort = import_onnxruntime()
    cpu = cpu_info()
    return {
        "cpu": cpu.name or platform.processor() or platform.machine(),
        "board": _read("/proc/device-tree/model"),
        "cores": usable_cores(),
        "cpu_quota": cpu_quota(),
        "physical_cores": psutil.cpu_count(logical=False),
        "isa": [name for name, aliases in _ISA.items() if cpu.flags.intersection(aliases)],
        "memory_bytes": psutil.virtual_memory().total,
        "os": _os_name(),
        "python": platform.python_version(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "gpu": _gpu(),
        "onnxruntime": ort.__version__,
        "providers": list(ort.get_available_providers()),
        "cuda_problem": cuda_problem(),
        "tensorrt_problem": tensorrt_problem(),
    }


def host_kind() -> str:
    """Return ``x64-vnni``, ``x64-avx2`` (any x86 without VNNI) or ``arm64``; empty for others."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "arm64"
    if machine in ("x86_64", "amd64"):
        return "x64-vnni" if cpu_info().flags.intersection(_ISA["avx512_vnni"] + _ISA["avx_vnni"]) else "x64-avx2"
    return ""


def wrong_host(model: Model) -> str:
    """Say that a model was made for another kind of CPU than this host's; empty: for this one, or for all."""
    check = _target_check(model)
    return "" if check["status"] == "ok" else f"{check['detail']}; {check['fix']}"


def artifact_check(model: Path) -> dict[str, str]:
    """Say what a model was made for and whether this host is of that kind: a check as `doctor` lists them.

    Raises:
        InputError: This is no usable model, or onnxruntime is missing.
    """
    return _target_check(open_model(model))


def _target_check(model: Model) -> dict[str, str]:
    """Compare the kind of CPU that a model names as its target with this host."""
    target = model.session.get_modelmeta().custom_metadata_map.get("kdedge.target")
    name, here = model.path.name, host_kind() or platform.machine()
    status, fix = "ok", ""
    if target is None:
        detail = f"{name} names no kind of CPU that it was made for"
    elif target == "portable":
        detail = f"{name} was made for every CPU"
    elif target == host_kind():
        detail = f"{name} was made for {target}, and this host is of that kind"
    else:
        status, fix = "broken", _ANYWHERE
        detail = f"{name} was made for {target} and this host is {here}: its answers may differ here"
    return {"name": "artifact", "status": status, "detail": detail, "fix": fix}


def cuda_problem() -> dict[str, str] | None:
    """Say why the CUDA execution provider cannot be used, or return None if it can.

    Returns:
        ``provider``, ``kind`` (``mixture`` of two builds of onnxruntime, ``no gpu`` or ``cpu build``), ``reason`` and
        ``fix``.

    Raises:
        InputError: onnxruntime is missing or broken.
    """
    if mixture := _mixture():
        return mixture
    gpu = _gpu()
    available = CUDA in import_onnxruntime().get_available_providers()
    if available and gpu:
        return None
    build = "" if available else "; the installed onnxruntime is the CPU build"
    if not gpu:
        reason = f"no NVIDIA GPU found (nvidia-smi is not there or lists none){build}"
        return _problem("no gpu", reason, f"with a GPU: {_ONLY_GPU}")
    return _problem("cpu build", f"{gpu} is there, but the installed onnxruntime is the CPU build", _ONLY_GPU)


def tensorrt_problem() -> str | None:
    """Say why the TensorRT execution provider cannot be used, or None if it is there; never seen at work.

    Raises:
        InputError: onnxruntime is missing or broken.
    """
    if _TENSORRT not in import_onnxruntime().get_available_providers():
        return "the installed onnxruntime has no TensorRT provider"
    # Builds for GPUs list the provider whether or not NVIDIA's library is there.
    if importlib.util.find_spec("tensorrt_libs") or ctypes.util.find_library("nvinfer"):
        return None
    return "onnxruntime has the provider, but the library of TensorRT (libnvinfer) was not found"


def doctor() -> dict[str, Any]:
    """Find out what this host can do.

    Returns:
        ``host`` (see `host_record`; None if onnxruntime is unusable) and ``checks``: a list of ``{name, status,
        detail, fix}`` with the status ``ok``, ``missing`` (something works without it) or ``broken``.
    """
    checks: list[dict[str, str]] = []

    def add(name: str, status: str, detail: str, fix: str = "") -> None:
        checks.append({"name": name, "status": status, "detail": detail, "fix": fix})

    try:
        host = host_record()
    except InputError as error:
        mixture = _mixture()
        detail = f"{error}; {mixture['reason']}" if mixture else str(error)
        add("onnxruntime", "broken", detail, mixture["fix"] if mixture else error.hint)
        host = None
    if host is not None:
        add("onnxruntime", "ok", f"{host['onnxruntime']}, providers {', '.join(_short(p) for p in host['providers'])}")
        problem = host["cuda_problem"]
        if problem is None:
            add("CUDA provider", "ok", f"on {host['gpu']}")
        else:
            status = "broken" if problem["kind"] == _MIXTURE else "missing"
            add("CUDA provider", status, problem["reason"], problem["fix"])
        trouble = host["tensorrt_problem"]
        add("TensorRT provider", "missing" if trouble else "ok", trouble or "there; kdedge does not measure it")
        add("INT8 instructions", *_int8_check(host["isa"]))
        if host["governor"] not in (None, "performance"):
            add(
                "CPU governor", "missing", f"{host['governor']}: clocks change while measuring",
                "sudo cpupower frequency-set -g performance",
            )  # fmt: skip
    add("kdedge", "ok", f"{__version__}; what a command lacks is added with {install_command('EXTRA')}")
    # find_spec looks a module up without importing it: torch alone takes seconds.
    there = {module: importlib.util.find_spec(module) is not None for module, _ in _PACKAGES}
    device = not any(there[module] for module in _TRAINING)
    if device:
        add("training", "ok", f"not installed; a device needs none of it. To train: {install_command('train')}")
    for module, purpose in _PACKAGES:
        package = {"PIL": "pillow"}.get(module, module)
        if device and module in (*_TRAINING, "matplotlib"):
            continue
        if there[module]:
            add(package, "ok", f"{_version(package) or 'installed'}: {purpose}")
        else:
            extra = "pip install pillow" if module == "PIL" else install_command("train")
            add(package, "missing", f"needed for: {purpose}", extra)
    return {"host": host, "checks": checks}


def format_doctor(facts: dict[str, Any], width: int = 80) -> str:
    """Format what `doctor` found as text of ``width`` columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    buffer = io.StringIO()
    console = Console(file=buffer, width=width, highlight=False, markup=False, color_system=None)
    host = facts["host"]
    if host is not None:
        quota = "" if host["cpu_quota"] is None else f", a quota of {host['cpu_quota']:g}"
        about = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for label, value in (
            ("CPU", host["cpu"]),
            ("board", host["board"]),
            ("cores", f"{host['cores']} usable, {host['physical_cores'] or '?'} physical{quota}"),
            ("instructions", ", ".join(host["isa"]) or "none of those that matter"),
            ("memory", f"{host['memory_bytes'] / 2**30:.1f} GiB"),
            ("system", f"{host['os']}, Python {host['python']}"),
            ("governor", host["governor"] or "not readable"),
            ("GPU", host["gpu"] or "none"),
        ):
            if value:
                about.add_row(label, value)
        console.print(about)
        console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found, and what to do", ratio=1)
    for check in facts["checks"]:
        detail = printable(check["detail"]) + (f"\n→ {check['fix']}" if check["fix"] else "")
        table.add_row(check["name"], check["status"], detail)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _int8_check(isa: list[str]) -> tuple[str, str, str]:
    """Say what INT8 can expect from the instruction sets: status, detail, fix."""
    fast = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm") if name in isa]
    if fast:
        return "ok", f"{', '.join(fast)}: integer dot products in hardware", ""
    detail = "no integer dot products: INT8 gains less, and 8-bit weights saturate on AVX2"
    return "missing", detail, "use the default (reduced-range) quantization, which is exact here too"


def _mixture() -> dict[str, str] | None:
    """Say how to get out of a mixture of the two packages that install the same module; None: it is none."""
    if not all(_version(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        return None
    wanted = "onnxruntime-gpu" if _gpu() else "onnxruntime"
    return _problem(
        _MIXTURE,
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
        f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {wanted}",
    )


def _problem(kind: str, reason: str, fix: str) -> dict[str, str]:
    return {"provider": CUDA, "kind": kind, "reason": reason, "fix": fix}


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    """Return the text of a small system file, or None if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _os_name() -> str:
    """Return distribution, kernel and machine."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release()} {platform.machine()}"


@functools.cache
def _gpu() -> str | None:
    """Return name, memory and driver of the NVIDIA GPUs, or None."""
    board = _read("/proc/device-tree/model")
    if board and "NVIDIA" in board:
        # Jetsons share memory with the CPU and often have no nvidia-smi.
        return board
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=False, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    return "; ".join(lines) if result.returncode == 0 and lines else None

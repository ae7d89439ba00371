"""This host: processor, memory, system, and execution providers with the reason if one is missing.

`host_record` returns the ``host`` section of ``report.json``; `doctor` adds the installed packages and the fix for each
problem, for ``kdedge doctor``. Imports no torch.
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
from kdedge.benchmarks.providers import CUDA, TENSORRT, install_hint, named_providers, short_names
from kdedge.benchmarks.session import Model, import_onnxruntime, open_model
from kdedge.benchmarks.units import short_provider
from kdedge.errors import InputError
from kdedge.files import cache_bytes, cache_dir
from kdedge.install import install_command
from kdedge.machine import cpu_info, cpu_quota, usable_cores
from kdedge.manifest import ONNXRUNTIMES
from kdedge.progress import printable

__all__ = [
    "artifact_check",
    "asked_providers",
    "cuda_problem",
    "doctor",
    "format_doctor",
    "host_kind",
    "host_record",
    "tensorrt_problem",
    "wrong_host",
]

# Instruction sets that decide speed or exactness of INT8 and low-precision kernels: our name, and the names of Linux
# and cpuid.
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
_MIXTURE = "mixture"
_ONLY_GPU = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
_ANYWHERE = "`kdedge quantize --target portable` makes one with the same predictions on every CPU"


def host_record() -> dict[str, Any]:
    """Describe this machine.

    Returns:
        ``cpu``, ``board`` (single-board computers, else None), ``cores`` (logical CPUs that this process may use),
        ``cpu_quota`` (of its control group, in CPUs; None: no limit), ``physical_cores``, ``isa`` (the instruction sets
        that matter for INT8), ``memory_bytes``, ``os``, ``python``, ``governor``, ``gpu`` (None: none found),
        ``onnxruntime`` (version), ``providers``, ``cuda_problem`` and ``tensorrt_problem`` (None: the provider is
        available).

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
    """Return a warning if the target of a model is not the CPU of this host, else an empty text."""
    check = _target_check(model)
    return "" if check["status"] == "ok" else f"{check['detail']}; {check['fix']}"


def artifact_check(model: Path) -> dict[str, str]:
    """Return a check, as in `doctor`, of whether this host is of the kind of CPU that a model was made for.

    Raises:
        InputError: The file is not a usable model, or onnxruntime is missing.
    """
    return _target_check(open_model(model))


def _target_check(model: Model) -> dict[str, str]:
    """Compare the target in the metadata of a model with this host."""
    target = model.session.get_modelmeta().custom_metadata_map.get("kdedge.target")
    name, here = model.path.name, host_kind() or platform.machine()
    status, fix = "ok", ""
    if target is None:
        detail = f"{name} has no target CPU in its metadata"
    elif target == "portable":
        detail = f"{name} was made for every CPU"
    elif target == host_kind():
        detail = f"{name} was made for {target}, and this host is of that kind"
    else:
        status, fix = "broken", _ANYWHERE
        detail = f"{name} was made for {target} and this host is {here}: its predictions may differ here"
    return {"name": "artifact", "status": status, "detail": detail, "fix": fix}


def cuda_problem() -> dict[str, str] | None:
    """Return why the CUDA execution provider is unavailable; None if it is available.

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
        reason = f"no NVIDIA GPU found (nvidia-smi is missing or lists none){build}"
        return _problem("no gpu", reason, f"with a GPU: {_ONLY_GPU}")
    return _problem("cpu build", f"{gpu} is available, but the installed onnxruntime is the CPU build", _ONLY_GPU)


def tensorrt_problem() -> str | None:
    """Return why the TensorRT execution provider is unavailable, else None. It was never tested.

    Raises:
        InputError: onnxruntime is missing or broken.
    """
    if TENSORRT not in import_onnxruntime().get_available_providers():
        return "the installed onnxruntime has no TensorRT provider"
    # Builds for GPUs list the provider even without NVIDIA's library.
    if importlib.util.find_spec("tensorrt_libs") or ctypes.util.find_library("nvinfer"):
        return None
    return "onnxruntime has the provider, but the library of TensorRT (libnvinfer) was not found"


def asked_providers(text: str) -> list[str]:
    """Return the execution providers that ``--provider`` names, other than the CPU; empty: none is named.

    Raises:
        InputError: A name is unknown, onnxruntime as installed lacks the provider, or its device or library is missing.
    """
    ort = import_onnxruntime()
    asked = named_providers(text, ort.get_all_providers()) if text else []
    available = ort.get_available_providers()
    for provider in asked:
        if problem := cuda_problem() if provider == CUDA else _mixture():
            raise InputError(f"--provider {text}: {problem['reason']}", problem["fix"])
        reason = tensorrt_problem() if provider == TENSORRT else None
        if provider not in available:
            has = ", ".join(short_names(available))
            reason = f"onnxruntime {ort.__version__} as installed has no {provider}; it has {has}"
        if reason:
            raise InputError(f"--provider {text}: {reason}", install_hint(provider))
    return asked


def doctor() -> dict[str, Any]:
    """Check the capabilities of this host.

    Returns:
        ``host`` (see `host_record`; None if onnxruntime is unusable) and ``checks``: a list of ``{name, status,
        detail, fix}`` with the status ``ok``, ``missing`` (optional) or ``broken``.
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
        providers = ", ".join(map(short_provider, host["providers"]))
        add("onnxruntime", "ok", f"{host['onnxruntime']}, providers {providers}")
        problem = host["cuda_problem"]
        if problem is None:
            add("CUDA provider", "ok", f"on {host['gpu']}")
        else:
            status = "broken" if problem["kind"] == _MIXTURE else "missing"
            add("CUDA provider", status, problem["reason"], problem["fix"])
        trouble = host["tensorrt_problem"]
        add("TensorRT provider", "missing" if trouble else "ok", trouble or "available: `--provider tensorrt`")
        add("INT8 instructions", *_int8_check(host["isa"]))
        if host["governor"] not in (None, "performance"):
            add(
                "CPU governor", "missing", f"{host['governor']}: clocks change while measuring",
                "sudo cpupower frequency-set -g performance",
            )  # fmt: skip
    add("kdedge", "ok", f"{__version__}; install missing packages with {install_command('EXTRA')}")
    # find_spec does not import the module: torch takes seconds.
    there = {module: importlib.util.find_spec(module) is not None for module, _ in _PACKAGES}
    device = not any(there[module] for module in _TRAINING)
    if device:
        add("training", "ok", f"not installed; not needed on a device. To train: {install_command('train')}")
    for module, purpose in _PACKAGES:
        package = {"PIL": "pillow"}.get(module, module)
        if device and module in (*_TRAINING, "matplotlib"):
            continue
        if there[module]:
            add(package, "ok", f"{_version(package) or 'installed'}: {purpose}")
        else:
            extra = "pip install pillow" if module == "PIL" else install_command("train")
            add(package, "missing", f"needed for: {purpose}", extra)
    add("cache", "ok", f"{cache_dir()}: {cache_bytes() / 1e9:.1f} GB, may be deleted while kdedge does not run")
    return {"host": host, "checks": checks}


def format_doctor(found: dict[str, Any], width: int = 80) -> str:
    """Format the result of `doctor` as text of ``width`` columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    buffer = io.StringIO()
    console = Console(file=buffer, width=width, highlight=False, markup=False, color_system=None)
    host = found["host"]
    if host is not None:
        quota = "" if host["cpu_quota"] is None else f", a quota of {host['cpu_quota']:g}"
        about = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for label, value in (
            ("CPU", host["cpu"]),
            ("board", host["board"]),
            ("cores", f"{host['cores']} usable, {host['physical_cores'] or '?'} physical{quota}"),
            ("instructions", ", ".join(host["isa"]) or "none that matter for INT8"),
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
    for check in found["checks"]:
        detail = printable(check["detail"]) + (f"\n→ {check['fix']}" if check["fix"] else "")
        table.add_row(check["name"], check["status"], detail)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _int8_check(isa: list[str]) -> tuple[str, str, str]:
    """Return status, detail and fix of the INT8 instructions."""
    fast = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm") if name in isa]
    if fast:
        return "ok", f"{', '.join(fast)}: integer dot products in hardware", ""
    detail = "no integer dot products: INT8 gains less, and 8-bit weights saturate on AVX2"
    return "missing", detail, "use the default (reduced-range) quantization, which is exact here too"


def _mixture() -> dict[str, str] | None:
    """Return the problem of several builds of onnxruntime being installed; None: they are not."""
    builds = [name for name in ONNXRUNTIMES if _version(name)]
    if len(builds) < 2:
        return None
    wanted = next((name for name in reversed(builds) if name != "onnxruntime-gpu" or _gpu()), "onnxruntime")
    return _problem(
        _MIXTURE,
        f"{' and '.join(builds)} are {'both' if len(builds) == 2 else 'all'} installed and overwrite each other",
        f"pip uninstall -y {' '.join(builds)} && pip install {wanted}",
    )


def _problem(kind: str, reason: str, fix: str) -> dict[str, str]:
    return {"provider": CUDA, "kind": kind, "reason": reason, "fix": fix}


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

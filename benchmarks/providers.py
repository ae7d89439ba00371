"""Execution providers of onnxruntime: their short names, the package that has each, and the options of a session.

The options set one number of threads and full precision, so that the rows of a table have the same terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdedge.errors import InputError
from kdedge.parsing import closest

__all__ = ["CPU", "CUDA", "GPUS", "TENSORRT", "install_hint", "named_providers", "session_providers", "short_names"]

_SUFFIX = "ExecutionProvider"
CPU = f"CPU{_SUFFIX}"
CUDA = f"CUDA{_SUFFIX}"
TENSORRT = f"Tensorrt{_SUFFIX}"

GPUS = {CUDA: "cuda", TENSORRT: "cuda"}
"""Providers with a memory of their own, and its name in onnxruntime. FP16 is measured there, too."""


@dataclass(frozen=True)
class _Known:
    """An execution provider that needs options, or is in a package of its own.

    Attributes:
        install: How to get an onnxruntime that has it.
        options: Fixed options of a session.
        threads: Name of the option for the number of threads; empty: it uses the threads of the session, or a device.
    """

    install: str
    options: Mapping[str, str] = field(default_factory=dict)
    threads: str = ""


def _replace(package: str) -> str:
    return f"pip uninstall -y onnxruntime && pip install {package}"


_KNOWN = {
    CUDA: _Known(_replace("onnxruntime-gpu")),
    TENSORRT: _Known(f"with an NVIDIA GPU: {_replace('onnxruntime-gpu')} tensorrt", {"trt_int8_enable": "1"}),
    # On CPUs with bf16 OpenVINO would choose that for FP32 models.
    f"OpenVINO{_SUFFIX}": _Known(
        _replace("onnxruntime-openvino"), {"device_type": "CPU", "precision": "FP32"}, "num_of_threads"
    ),
    f"Xnnpack{_SUFFIX}": _Known(
        "no wheel has XNNPACK: build onnxruntime with --use_xnnpack, or use its Android package",
        threads="intra_op_num_threads",
    ),
    f"CoreML{_SUFFIX}": _Known("on macOS: pip install onnxruntime"),
    f"QNN{_SUFFIX}": _Known(f"on Windows or Linux with a Snapdragon: {_replace('onnxruntime-qnn')}"),
    f"Dml{_SUFFIX}": _Known(f"on Windows: {_replace('onnxruntime-directml')}"),
}


def short_names(providers: list[str]) -> list[str]:
    """Return the names that a user types."""
    return [provider.removesuffix(_SUFFIX).lower() for provider in providers]


def named_providers(text: str, every: list[str]) -> list[str]:
    """Return the providers other than the CPU that a comma-separated list names, by their full names.

    Args:
        text: Short or full names in any case, such as ``cpu,openvino``.
        every: All providers that onnxruntime could have.

    Raises:
        InputError: A name is unknown.
    """
    known = dict(zip(short_names(every), every, strict=True))
    found = []
    for part in text.split(","):
        name = part.strip().lower().removesuffix(_SUFFIX.lower())
        if name not in known:
            raise InputError(
                f"--provider {text!r}: onnxruntime has no execution provider {part.strip()!r}{closest(name, known)}",
                f"known: {', '.join(sorted(known))}",
            )
        found.append(known[name])
    return [provider for provider in dict.fromkeys(found) if provider != CPU]


def install_hint(provider: str) -> str:
    """Return how to get an onnxruntime that has a provider."""
    known = _KNOWN.get(provider)
    return (
        known.install
        if known
        else f"build onnxruntime with {provider}: https://onnxruntime.ai/docs/execution-providers"
    )


def session_providers(provider: str, threads: int) -> list[Any]:
    """Return the providers of a session with their options; the CPU runs the nodes that the first one lacks."""
    known = _KNOWN.get(provider, _Known(""))
    count = {known.threads: str(threads)} if known.threads else {}
    return [CPU] if provider == CPU else [(provider, {**known.options, **count}), CPU]

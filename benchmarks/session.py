"""Open and check ONNX models: sessions with given threads and execution provider.

A model of kdedge takes ``pixels`` (uint8 ``[N, S, S, 3]`` RGB or ``[N, S, S, 1]`` grey) or ``signal`` (float32
``[N, L, C]``) and returns ``logits`` (float32 ``[N, classes]``); `kdedge.inputs.InputSpec` describes its input.
Other models, and files that onnxruntime cannot read, raise an `InputError` with the expected format.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.providers import CPU, CUDA, GPUS, install_hint, session_providers
from kdedge.errors import InputError, StageError
from kdedge.files import parse_json
from kdedge.inputs import RATE_TOLERANCE, InputSpec, image_input_of, inputs_at_once
from kdedge.preprocessing import resize_mode_of

__all__ = [
    "CPU",
    "CUDA",
    "Model",
    "batch_size",
    "check_fits",
    "describe",
    "first_line",
    "import_onnxruntime",
    "onnxruntime_errors",
    "open_model",
    "open_session",
    "read_class_names",
    "read_resize_mode",
    "run_model",
    "session_options",
]

_EXPORT = "export it with `kdedge export` and `kdedge quantize`"
_DAMAGED = f"the model is damaged: copy it again from its source, or {_EXPORT}"


@dataclass(frozen=True)
class Model:
    """An open model.

    Attributes:
        path: The file.
        session: The onnxruntime session.
        provider: The requested execution provider (nodes without a kernel there run on the CPU).
        threads: Intra-op threads.
        spec: The input.
        classes: Number of classes C.
        class_names: Names from the file's metadata, or None if it has none.
        load_ms: Time to read the file, optimise the graph and allocate, in milliseconds.
    """

    path: Path
    session: Any
    provider: str
    threads: int
    spec: InputSpec
    classes: int
    class_names: tuple[str, ...] | None
    load_ms: float

    def logits(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Run the model: a batch of inputs to finite float32 ``[N, C]``.

        Raises:
            StageError: onnxruntime fails, or returns logits of another shape or not finite ones.
        """
        try:
            result: npt.NDArray[np.float32] = self.session.run(["logits"], {self.spec.name: batch})[0]
        except onnxruntime_errors() as error:
            raise StageError(f"{self.path} loads but does not run: {first_line(error)}", _DAMAGED) from error
        shape = (len(batch), self.classes)
        if result.shape != shape:
            raise StageError(f"{self.path} returns logits {list(result.shape)}, expected {list(shape)}", _DAMAGED)
        if not np.isfinite(result).all():
            raise StageError(f"{self.path} returns logits that are NaN or infinite", _DAMAGED)
        return result

    def caller(self, batch: npt.NDArray[Any]) -> Callable[[], object]:
        """Return a call of only ``session.run`` on a fixed batch, for timing."""
        run, names, feed = self.session.run, ["logits"], {self.spec.name: batch}
        return lambda: run(names, feed)

    def device_caller(self, batch: npt.NDArray[Any]) -> Callable[[], object]:
        """Return the call with inputs and logits on the provider's device, without copies.

        On providers without a device it is the host. On CUDA a run of onnxruntime ends with a wait for the GPU.
        """
        device = GPUS.get(self.provider, "cpu")
        binding = self.session.io_binding()
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy(batch, device, 0)
        binding.bind_ortvalue_input(self.spec.name, value)
        binding.bind_output("logits", device, 0)
        run = self.session.run_with_iobinding
        return lambda: run(binding)


def import_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        InputError: onnxruntime is not installed, or its installation is broken.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"onnxruntime cannot be imported: {error}",
            "pip install onnxruntime  (or onnxruntime-gpu on a machine with an NVIDIA GPU)",
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # The rest of the package after one of onnxruntime and onnxruntime-gpu was uninstalled over the other.
        raise InputError(
            "the installation of onnxruntime is broken: the module is empty",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime",
        )
    return onnxruntime


def session_options(threads: int, *, spinning: bool = False) -> Any:
    """Return session options with ``threads`` intra-op threads and without a log; waiting threads sleep.

    Spinning threads look faster on an idle machine and stall on a busy one: with 2 threads p90 went from
    0.8 to 5 ms.
    """
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.log_severity_level = 4
    return options


def open_model(path: Path, *, provider: str = CPU, threads: int = 1, options: Any = None, hint: str = _EXPORT) -> Model:
    """Open an ONNX model and check that it has kdedge's format.

    Args:
        path: The model file.
        provider: Execution provider to run on.
        threads: Intra-op threads, at least 1.
        options: Session options instead of `session_options`.
        hint: How to get a model.

    Raises:
        InputError: The file is missing, truncated, not an ONNX model, or has other inputs or outputs.
        StageError: The execution provider is unavailable.
    """
    session, load_ms = open_session(
        path, provider=provider, threads=threads, options=options or session_options(threads), hint=hint
    )
    spec, classes = _check_signature(path, session)
    return Model(path, session, provider, threads, spec, classes, read_class_names(path, session), load_ms)


def open_session(
    path: Path, *, provider: str = CPU, threads: int = 1, options: Any, hint: str = _EXPORT
) -> tuple[Any, float]:
    """Open any ONNX model.

    Args:
        path: The model file.
        provider: Execution provider to run on.
        threads: Threads of a provider that does not use those of the session.
        options: Session options.
        hint: How to get a model.

    Returns:
        The session, and the time to load the model in milliseconds.

    Raises:
        InputError: The file is missing, truncated or not an ONNX model.
        StageError: The execution provider is unavailable.
    """
    ort = import_onnxruntime()
    if path.is_dir():
        models = sorted(path.glob("*.onnx"), key=lambda one: one.stat().st_size, reverse=True)  # FP32 first
        raise InputError(f"{path} is a folder", f"give a file in it, such as {models[0]}" if models else hint)
    if not path.is_file():
        raise InputError(f"no model at {path}", hint)
    if provider not in ort.get_available_providers():
        raise StageError(f"onnxruntime {ort.__version__} as installed has no {provider}", install_hint(provider))
    if provider in GPUS and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    utf8 = os.fsencode(path) == str(path).encode(errors="replace")
    start = time.perf_counter_ns()
    try:
        model = path if utf8 else path.read_bytes()  # onnxruntime takes no other paths
        session = ort.InferenceSession(model, options, providers=session_providers(provider, threads))
    except onnxruntime_errors() as error:
        raise InputError(
            f"{path} ({path.stat().st_size:,} bytes) is not a usable ONNX model: {first_line(error)}",
            f"the file is truncated or altered, or needs a newer onnxruntime than {ort.__version__}; {hint}",
        ) from error
    load_ms = (time.perf_counter_ns() - start) / 1e6
    if provider not in session.get_providers():
        raise StageError(f"onnxruntime fell back from {provider} to {', '.join(session.get_providers())}")
    return session, load_ms


def run_model(model: Model, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the logits of all inputs.

    Args:
        model: From `kdedge.benchmarks.session.open_model`.
        inputs: Images or windows, N at least 1.

    Returns:
        Logits, ``[N, C] float32``.
    """
    batch = batch_size(model.spec.shape)
    parts: list[Any] = [model.logits(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    return np.concatenate(parts)


def batch_size(shape: Sequence[int]) -> int:
    """Return the batch size for inputs of this shape that limits the memory of activations."""
    return inputs_at_once(shape, 64, 32)


def check_fits(model: Model, class_names: Sequence[str], spec: InputSpec) -> None:
    """Check that a model fits a data set.

    Raises:
        InputError: They differ in classes, or in size, channels or rate of the inputs.
    """
    options = "--data, --image-size, --color" if spec.kind == "image" else "--data, --window"
    hint = f"benchmark with the data set that the model was trained on ({options})"
    if model.classes != len(class_names):
        raise InputError(f"{model.path} has {model.classes} classes, the data set has {len(class_names)}", hint)
    if model.class_names is not None and model.class_names != tuple(class_names):
        index = next(i for i, name in enumerate(class_names) if model.class_names[i] != name)
        raise InputError(
            f"{model.path} calls class {index} {model.class_names[index]!r}, the data set {class_names[index]!r}", hint
        )
    if (model.spec.shape, model.spec.channels) != (spec.shape, spec.channels):
        raise InputError(f"{model.path} takes {model.spec.words}, the data set has {spec.words}", hint)
    rates = (model.spec.rate_hz, spec.rate_hz)
    if all(rates) and not math.isclose(*rates, rel_tol=RATE_TOLERANCE):
        raise InputError(f"{model.path} takes {rates[0]:g} samples per second, the data set has {rates[1]:g}", hint)


def _check_signature(path: Path, session: Any) -> tuple[InputSpec, int]:
    """Return input and class count of a session whose inputs and outputs are kdedge's."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = f"{path} takes {describe(inputs)} and returns {describe(outputs)}"
    wanted = (
        "expected pixels uint8 [N, S, S, 3] or [N, S, S, 1] or signal float [N, L, C], and logits float [N, classes]"
    )
    fits = (
        len(inputs) == len(outputs) == 1
        and outputs[0].name == "logits"
        and outputs[0].type == "tensor(float)"
        and len(outputs[0].shape) == 2
    )
    spec = _read_spec(path, session, inputs[0]) if fits else None
    # A dynamic axis is a name or None.
    if spec and isinstance(classes := outputs[0].shape[1], int):
        if isinstance(batch := inputs[0].shape[0], int):
            raise InputError(f"{path} has the fixed batch {batch}; {wanted} with a dynamic N", _EXPORT)
        return spec, classes
    raise InputError(f"{found}; {wanted}", _EXPORT)


def _read_spec(path: Path, session: Any, value: Any) -> InputSpec | None:
    """Return the input of a session; None if it is not one of kdedge."""
    shape = tuple(value.shape[1:])
    if (value.name, value.type) == ("pixels", "tensor(uint8)"):
        return image_input_of(shape, read_resize_mode(path, session))
    text = session.get_modelmeta().custom_metadata_map.get("kdedge.preprocessing")
    if (value.name, value.type) != ("signal", "tensor(float)") or text is None:
        return None
    try:
        spec = InputSpec.from_json(parse_json(text))
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise InputError(f"{path}: the metadata kdedge.preprocessing is damaged", _EXPORT) from error
    return spec if spec.shape == shape else None


def read_class_names(path: Path, session: Any) -> tuple[str, ...] | None:
    """Read the class names from the metadata of a model."""
    text = session.get_modelmeta().custom_metadata_map.get("kdedge.classes")
    if text is None:
        return None
    try:
        names = parse_json(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) != session.get_outputs()[0].shape[1]:
        raise InputError(f"{path}: the metadata kdedge.classes is not a JSON list with one name per class", _EXPORT)
    return tuple(str(name) for name in names)


def read_resize_mode(path: Path, session: Any) -> str:
    """Read from the metadata of a model how its images become square; ``squeeze`` if it has none.

    Raises:
        InputError: The metadata are damaged.
    """
    try:
        return resize_mode_of(parse_json(session.get_modelmeta().custom_metadata_map.get("kdedge.preprocessing", "{}")))
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path}: the metadata kdedge.preprocessing are damaged: {error}", _EXPORT) from error


def describe(values: Sequence[Any]) -> str:
    """Return the inputs or outputs of a session as text."""
    return ", ".join(f"{v.name} {v.type.removeprefix('tensor(').removesuffix(')')} {v.shape}" for v in values)


def first_line(error: BaseException) -> str:
    """Return onnxruntime's message without its prefix and source location."""
    text = str(error).splitlines()[0]
    return text.split(" : ", 3)[-1].strip()


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return the errors of onnxruntime for models that it cannot load or run; they lack a common base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    )

"""LiteRT (TensorFlow Lite), converted by litert-torch and quantized by ai-edge-quantizer with its static INT8 recipe.

LiteRT's converter takes PyTorch modules, so it gets the float core of the ONNX model as PyTorch operators. Its models
take normalised inputs, channels last, as float or int8; numpy converts raw inputs, which counts as latency.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.export.runtimes.runtime import Bind, Runtime
from kdedge.inputs import InputSpec

__all__ = ["LITERT"]

_NAME = "LiteRT"
_LAYERS = {"CONV_2D": "convs", "DEPTHWISE_CONV_2D": "convs", "FULLY_CONNECTED": "gemms"}


def _convert(student: Path, calibration: npt.NDArray[Any], folder: Path) -> None:
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    from kdedge.export.graph import cut_input_adapter, read_model, read_spec
    from kdedge.export.runtimes.torch_core import TorchCore

    model = read_model(student)
    spec = read_spec(model)
    assert spec is not None  # `read_model` checks it
    core = litert_torch.to_channel_last_io(TorchCore(cut_input_adapter(model, spec)), args=[0]).eval()
    fp32, int8 = (str(folder / name) for name in LITERT.files)
    litert_torch.convert(core, (torch.from_numpy(_channels_last(spec, spec.zeros(1))),)).export(fp32)
    interpreter = Interpreter(fp32)
    ((signature, names),) = interpreter.get_signature_list().items()
    quantize = quantizer.Quantizer(fp32, recipe.static_wi8_ai8())
    ranges = quantize.calibrate(
        {signature: [{names["inputs"][0]: _channels_last(spec, image[None])} for image in calibration]}
    )
    if spec.kind == "image":
        # Pixels have this range; a smaller one, from a moving average over the images, would cut the brightest off.
        ends = ranges[interpreter.get_input_details()[0]["name"]]
        ends["min"], ends["max"] = np.zeros_like(ends["min"]), np.ones_like(ends["max"])
    quantize.quantize(ranges).export_model(int8, overwrite=True)


def _load(path: Path, spec: InputSpec, threads: int) -> Bind:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def bind(batch: npt.NDArray[Any]) -> Callable[[], npt.NDArray[Any]]:
        interpreter.resize_tensor_input(source["index"], _channels_last(spec, batch).shape)
        interpreter.allocate_tensors()

        def run() -> npt.NDArray[Any]:
            interpreter.set_tensor(source["index"], _quantized(source, _channels_last(spec, batch)))
            interpreter.invoke()
            scale, zero = target["quantization"]
            logits: npt.NDArray[Any] = interpreter.get_tensor(target["index"])
            return (logits.astype(np.float32) - zero) * np.float32(scale) if scale else logits

        return run

    return bind


def _channels_last(spec: InputSpec, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return what the core computes on, ``[N, H, W, C]``."""
    return np.ascontiguousarray(spec.normalised(batch).transpose(0, 2, 3, 1))


def _quantized(source: dict[str, Any], values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Return values in the type of an input."""
    scale, zero = source["quantization"]
    if not scale:
        return values
    limits = np.iinfo(source["dtype"])
    rounded = np.rint(values / np.float32(scale)) + zero
    quantized: npt.NDArray[Any] = np.clip(rounded, limits.min, limits.max).astype(source["dtype"])
    return quantized


def _kernels(path: Path) -> dict[str, Any]:
    """Count the layers by the type of their input, from which LiteRT chooses the kernel."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # With its delegate, LiteRT lists one node in place of those that the delegate runs.
    listed = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=listed)
    interpreter.allocate_tensors()
    types = {tensor["index"]: np.dtype(tensor["dtype"]) for tensor in interpreter.get_tensor_details()}
    counts: dict[str, Counter[str]] = {"convs": Counter(), "gemms": Counter()}
    operators = interpreter._get_ops_details()
    for operator in operators:
        if layer := _LAYERS.get(operator["op_name"]):
            counts[layer]["integer" if types[operator["inputs"][0]].kind == "i" else "float"] += 1
    return {**{key: dict(found) for key, found in counts.items()}, "nodes_by_provider": {_NAME: len(operators)}}


LITERT = Runtime(
    name=_NAME,
    files=("student.tflite", "student.int8.tflite"),
    runs=("ai_edge_litert",),
    converts=("ai_edge_quantizer", "litert_torch", "torch"),
    convert=_convert,
    load=_load,
    kernels=_kernels,
)

"""OpenVINO's own format (IR), quantized by NNCF with its defaults. It takes the raw inputs of the ONNX model."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.export.runtimes.runtime import Bind, Runtime
from kdedge.inputs import InputSpec

__all__ = ["OPENVINO"]

_NAME = "OpenVINO IR"
_LAYERS = {"Convolution": "convs", "FullyConnected": "gemms"}
_INTEGERS = {"i8", "u8"}


def _convert(student: Path, calibration: npt.NDArray[Any], folder: Path) -> None:
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.convert_model(student)
    openvino.save_model(model, folder / OPENVINO.files[0], compress_to_fp16=False)
    data = nncf.Dataset([image[None] for image in calibration])
    openvino.save_model(nncf.quantize(model, data, subset_size=len(calibration)), folder / OPENVINO.files[1])


def _compile(path: Path, threads: int) -> Any:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # On CPUs with bf16 OpenVINO would choose that for FP32 models.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.Core().compile_model(path, "CPU", settings)


def _load(path: Path, spec: InputSpec, threads: int) -> Bind:
    import openvino

    model = _compile(path, threads)

    def bind(batch: npt.NDArray[Any]) -> Callable[[], npt.NDArray[Any]]:
        request = model.create_infer_request()
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(batch), shared_memory=True))
        return lambda: request.infer(share_outputs=True)[0]

    return bind


def _kernels(path: Path) -> dict[str, Any]:
    """Count the layers of the compiled model by the precision that OpenVINO chose for each."""
    counts: dict[str, Counter[str]] = {"convs": Counter(), "gemms": Counter()}
    nodes = 0
    for node in _compile(path, 1).get_runtime_model().get_ops():
        about = node.get_rt_info()
        kind, precision = (about[key].astype(str) for key in ("layerType", "runtimePrecision"))
        if kind in _LAYERS:
            counts[_LAYERS[kind]]["integer" if precision in _INTEGERS else "float"] += 1
        nodes += kind not in ("Const", "Input", "Output")
    return {**{key: dict(found) for key, found in counts.items()}, "nodes_by_provider": {_NAME: nodes}}


OPENVINO = Runtime(
    name=_NAME,
    files=("student.xml", "student.int8.xml", "student.bin", "student.int8.bin"),
    runs=("openvino",),
    converts=("nncf",),
    convert=_convert,
    load=_load,
    kernels=_kernels,
)

"""The kernels that onnxruntime executes: integer or float, and their execution providers.

A quantized file is not enough: onnxruntime may leave a convolution in float between Dequantize and Quantize. So the
model runs once under the profiler, which counts the executed kernels. The model's metadata (``kdedge.float_layers``)
name the layers that the quantization left in float on purpose. Needs no ``onnx`` package.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from kdedge.benchmarks.session import CPU, import_onnxruntime, open_model, session_options
from kdedge.files import scratch_dir

__all__ = ["FLOAT_CONVS", "FLOAT_GEMMS", "INTEGER_CONVS", "INTEGER_GEMMS", "int8_proof", "kernels_run"]

INTEGER_CONVS = {"QLinearConv", "ConvInteger", "NhwcQLinearConv"}
FLOAT_CONVS = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"}
INTEGER_GEMMS = {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
FLOAT_GEMMS = {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul"}
_BOUNDARIES = {"QuantizeLinear", "DequantizeLinear"}
_COPIES = {"MemcpyFromHost", "MemcpyToHost"}
_FLOAT_TYPES = {"float", "float16", "double", "bfloat16"}


class _Profile(NamedTuple):
    """The profile of one run of a model.

    Attributes:
        kernels: In order: name, op, provider, type of the first input, and whether it computes in float.
        provider_options: The options of the provider.
        float_layers: The layers in float on purpose, from the model's metadata.
        adopted: Whether kdedge did not train the model, so that any layer may be in float.
    """

    kernels: list[dict[str, Any]]
    provider_options: dict[str, str]
    float_layers: list[str]
    adopted: bool


def int8_proof(path: Path) -> dict[str, Any]:
    """Run a model once on one image, on the CPU provider, and report its kernels.

    Returns:
        Counts ``integer_convs``, ``float_convs``, ``integer_gemms``, ``float_gemms``; ``ops_by_type``
        (kernel to count); ``float_operators`` (names of the nodes that take and return floats, without Quantize and
        Dequantize); ``float_on_purpose`` and ``float_by_accident`` (convolutions and matrix products among them that
        are and are not in the metadata; a model that kdedge did not train has none by accident);
        ``providers_by_node`` (node to execution provider).

    Raises:
        InputError: The file is not a model of kdedge (see `kdedge.benchmarks.session.open_model`).
    """
    ort = import_onnxruntime()
    levels = ort.GraphOptimizationLevel
    kernels, _, chosen, adopted = _profile(path, CPU, levels.ORT_ENABLE_ALL)
    ops = Counter(kernel["op"] for kernel in kernels)
    left = [kernel for kernel in kernels if kernel["float"]]
    if left:
        # The last optimization level changes only memory layouts, but renames float nodes. The names are those of the
        # level below, which already fuses quantized operators.
        named = _profile(path, CPU, levels.ORT_ENABLE_EXTENDED).kernels
        left = [kernel for kernel in named if kernel["float"]]
    layers = [kernel["name"] for kernel in left if kernel["op"] in FLOAT_CONVS | FLOAT_GEMMS]
    return {
        "integer_convs": _count(ops, INTEGER_CONVS),
        "float_convs": _count(ops, FLOAT_CONVS),
        "integer_gemms": _count(ops, INTEGER_GEMMS),
        "float_gemms": _count(ops, FLOAT_GEMMS),
        "ops_by_type": dict(sorted(ops.items())),
        "float_operators": [kernel["name"] for kernel in left],
        "float_on_purpose": [name for name in layers if name in chosen],
        "float_by_accident": [name for name in layers if name not in chosen and not adopted],
        "providers_by_node": {kernel["name"]: kernel["provider"] for kernel in kernels},
    }


def kernels_run(path: Path, provider: str) -> dict[str, Any]:
    """Run a model once on one image and return arithmetic and providers of its kernels.

    A provider without a kernel leaves the node to the CPU, with copies around it, or computes it in another precision:
    CUDA has no INT8 convolution.

    Args:
        path: The ONNX model.
        provider: Execution provider.

    Returns:
        ``convs`` and ``gemms``: number of convolutions and matrix products by arithmetic (``integer``, or the float
        type of their input), without those in ``subgraphs``: number of parts of the graph that the provider compiled,
        which the profile shows as one kernel each;
        ``nodes_by_provider``: number of kernels by execution provider; ``copies``: kernels that copy between host and
        device; ``quantize_nodes``: Quantize and Dequantize kernels; ``tf32``: whether float convolutions may be
        computed in TensorFloat-32 (None: the provider lacks the option).

    Raises:
        InputError: The file is not a model of kdedge (see `kdedge.benchmarks.session.open_model`).
        StageError: The execution provider could not be started.
    """
    kernels, options, *_ = _profile(path, provider, import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_ALL)
    ops = Counter(kernel["op"] for kernel in kernels)

    def by_arithmetic(floats: set[str], integers: set[str]) -> dict[str, int]:
        found = Counter(kernel["type"] for kernel in kernels if kernel["op"] in floats)
        if count := _count(ops, integers):
            found["integer"] = count
        return dict(sorted(found.items()))

    tf32 = options.get("use_tf32")
    return {
        "convs": by_arithmetic(FLOAT_CONVS, INTEGER_CONVS),
        "gemms": by_arithmetic(FLOAT_GEMMS, INTEGER_GEMMS),
        "subgraphs": sum(kernel["name"].startswith(f"{provider}_") for kernel in kernels),
        "nodes_by_provider": dict(sorted(Counter(kernel["provider"] for kernel in kernels).items())),
        "copies": _count(ops, _COPIES),
        "quantize_nodes": _count(ops, _BOUNDARIES),
        "tf32": None if tf32 is None else tf32 == "1",
    }


def _profile(path: Path, provider: str, level: Any) -> _Profile:
    """Run a model once."""
    options = session_options(1)
    options.graph_optimization_level = level
    options.enable_profiling = True
    with scratch_dir() as directory:
        options.profile_file_prefix = str(Path(directory) / "profile")
        model = open_model(path, provider=provider, options=options)
        model.logits(model.spec.zeros(1))
        provider_options = model.session.get_provider_options().get(provider, {})
        events = json.loads(Path(model.session.end_profiling()).read_text())
        metadata = model.session.get_modelmeta().custom_metadata_map
    kernels = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            args = event["args"]
            kernels.append(
                {
                    "name": event["name"].removesuffix("_kernel_time"),
                    "op": args["op_name"],
                    "provider": args["provider"],
                    "type": next(iter((args.get("input_type_shape") or [{}])[0]), ""),
                    "float": args["op_name"] not in _BOUNDARIES and _takes_float(args) and _returns_float(args),
                }
            )
    chosen = json.loads(metadata.get("kdedge.float_layers", "[]"))
    return _Profile(kernels, provider_options, chosen, "kdedge.adopted" in metadata)


def _takes_float(args: dict[str, Any]) -> bool:
    """Return whether the first input is float; later inputs of integer operators are scales, which are float."""
    shapes = args.get("input_type_shape") or [{}]
    return bool(_FLOAT_TYPES & shapes[0].keys())


def _returns_float(args: dict[str, Any]) -> bool:
    return any(_FLOAT_TYPES & shape.keys() for shape in args.get("output_type_shape") or [])


def _count(ops: Counter[str], names: set[str]) -> int:
    return sum(count for op, count in ops.items() if op in names)

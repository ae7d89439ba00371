"""Why an operator of a quantized model runs in float.

`float_causes` reads the causes from the graph that onnxruntime optimised; `float_operators` puts them into words.
"""

from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any

import onnx

from kdedge.benchmarks.kernels import FLOAT_GEMMS
from kdedge.export.lookup import initializers, producers, readers

__all__ = ["float_causes", "float_operators"]

_GATES = {"Sigmoid", "HardSigmoid"}
_ACTIVATIONS = {
    *_GATES, "HardSwish", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Erf", "Tanh", "Softmax", "LeakyRelu", "PRelu",
    "Elu", "Selu", "Celu", "Mish", "Softplus", "ThresholdedRelu",
}  # fmt: skip
_NORMS = {
    "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "InstanceNormalization",
    "GroupNorm", "GroupNormalization", "LpNormalization", "LRN",
}  # fmt: skip
_WORDS = {
    "repair": "a repair step left it in float",
    "activation": "activation, which kdedge does not quantize",
    "gate": "multiplication by a computed factor, as in squeeze-and-excitation, which kdedge does not quantize",
    "normalisation": "normalisation by statistics of the image, which kdedge does not quantize",
    "shape": "computes a shape from shapes, not from images",
    "operator": "kdedge does not quantize {type}",
    "two_inputs": "product of two computed tensors, as in attention",
    "float_input": "its input is the float result of {other}",
    "float_output": "its output is the float input of {other}",
    "logits": "it returns the logits",
    "kernel": "onnxruntime has no integer kernel for it",
}


def float_causes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> list[dict[str, str]]:
    """Return ``name``, ``type``, ``cause`` (a key of `_WORDS`) and ``other`` of float nodes of an optimised graph.

    ``other`` is the type of the operator that causes it; empty: none. `float_operators` changes the cause of operators
    that kdedge does not quantize.
    """
    sources, constants, left = producers(graph), initializers(graph), list(nodes)
    of_shapes: set[str] = set()
    for node in graph.node:
        computed = [name for name in node.input if name and name not in constants]
        if node.op_type == "Shape" or (computed and of_shapes.issuperset(computed)):
            of_shapes.update(node.output)
    outputs = {value.name for value in graph.output}
    floats = {name for node in left for name in node.output}
    found = []
    for node in left:
        cause, other = "kernel", ""
        following = [reader for reader in readers(graph, node.output[0]) if reader.op_type != "QuantizeLinear"]
        if node.output[0] in of_shapes:
            cause = "shape"
        elif node.op_type == "Mul":
            cause = _multiplication(node, sources)
        elif before := [sources[name].op_type for name in node.input if name in floats]:
            cause, other = "float_input", before[0]
        elif node.op_type in FLOAT_GEMMS and _origin(node.input[1], sources) not in constants:
            cause = "two_inputs"
        elif node.output[0] in outputs:
            cause = "logits"
        elif following:
            cause, other = "float_output", following[0].op_type
        found.append(
            {"name": node.name or node.output[0], "type": node.op_type, "cause": cause, "other": other},
        )
    return found


def float_operators(proof: Mapping[str, Any], quantized: Collection[str], left: Container[str]) -> list[dict[str, str]]:
    """Return every operator of a model that runs in float, with its reason.

    Args:
        proof: From `kdedge.export.quantize.proof.integer_proof`.
        quantized: Types of the operators that are quantized.
        left: Names of layers that are in float on purpose.

    Returns:
        For each operator ``name``, ``type``, ``cause`` and ``reason``.
    """

    def cause(node: Mapping[str, str]) -> str:
        kind = node["type"]
        if node["name"] in left:
            return "repair"
        if kind in _ACTIVATIONS:
            return "activation"
        if kind in _NORMS:
            return "normalisation"
        known = kind in quantized or "Conv" in kind or kind in FLOAT_GEMMS
        if known or node["cause"] in ("shape", "activation", "gate"):
            return node["cause"]
        return "operator"

    rows = []
    for node in proof["float_nodes"]:
        why = cause(node)
        reason = _WORDS[why].format(type=node["type"], other=node["other"])
        rows.append({"name": node["name"], "type": node["type"], "cause": why, "reason": reason})
    return rows


def _multiplication(node: onnx.NodeProto, sources: Mapping[str, onnx.NodeProto]) -> str:
    """Return whether a Mul belongs to SiLU or HardSwish, or scales by a computed factor."""
    factors = [sources[name] for name in node.input if name in sources]
    for factor in factors:
        if factor.op_type in _GATES:
            others = {_origin(name, sources) for name in node.input if name not in factor.output}
            return "activation" if _origin(factor.input[0], sources) in others else "gate"
    return "gate" if len(factors) > 1 else "kernel"


def _origin(tensor: str, sources: Mapping[str, onnx.NodeProto]) -> str:
    """Return the integer tensor that a DequantizeLinear reads, or else the tensor."""
    source = sources.get(tensor)
    return source.input[0] if source is not None and source.op_type == "DequantizeLinear" else tensor

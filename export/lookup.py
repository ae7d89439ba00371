"""Lookups in an ONNX graph: initializers, producers and readers of tensors, attributes, layers with weights."""

from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["arrays", "attributes", "dimensions", "initializers", "layers", "producers", "readers", "rename"]


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers by name, to modify."""
    return {item.name: item for item in graph.initializer}


def arrays(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """Return the values of the initializers by name, to read."""
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that computes each tensor, by the name of the tensor."""
    return {name: node for node in graph.node for name in node.output}


def readers(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    """Return the nodes with this tensor among their inputs."""
    return [node for node in graph.node if tensor in node.input]


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Replace ``old`` by ``new`` in the inputs of all nodes."""
    for node in readers(graph, old):
        node.input[:] = [new if name == old else name for name in node.input]


def dimensions(value: onnx.ValueInfoProto) -> list[int]:
    """Return the dimensions of a tensor; 0 for symbolic ones."""
    return [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name; lists as lists, strings as bytes."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the two-dimensional convolutions and the products with one constant matrix, in order."""
    ranks = {item.name: len(item.dims) for item in graph.initializer}
    wanted = {"Conv": 4, "Gemm": 2, "MatMul": 2}
    return [node for node in graph.node if (rank := wanted.get(node.op_type)) and ranks.get(node.input[1]) == rank]

"""Builds INT8 models from the float core, the ranges of its tensors, onnxruntime's QDQ quantizer and the input adapter.

quantizer = Quantizer.from_model(read_model(path), images)    # for calibration
data = quantizer.build(Candidate())                           # bytes of the deployed model
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from kdedge.export import lookup
from kdedge.export.graph import ADOPTED, add_input_adapter, cut_input_adapter, drop_unused, keep_float, read_spec
from kdedge.export.quantize.calibrate import TensorStatistics
from kdedge.export.quantize.candidates import Candidate
from kdedge.files import scratch_dir
from kdedge.inputs import InputSpec

__all__ = ["OP_TYPES", "Quantizer"]

OP_TYPES = (
    "Conv", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "Reshape", "Flatten",
    "Squeeze", "Transpose", "Split", "Gemm", "MatMul",
)  # fmt: skip
_FLOAT_OUTPUT = ["Gemm", "MatMul"]


@dataclass(frozen=True)
class Quantizer:
    """Builds INT8 models from one float core and one pool of calibration images.

    Attributes:
        core: The float network without input adapter, batch norm folded; takes normalised ``image`` float32
            ``[N, C, H, W]``.
        original: The core before its weights were repaired.
        spec: The input of the deployed model.
        images: Images or windows; a candidate is calibrated on the first ``calibration_images``.
        metadata: Metadata of the deployed model.
        ir_version: ONNX IR version of the deployed model.
        statistics: Statistics of the tensors, by number of images; measured when first needed.
    """

    core: onnx.ModelProto
    original: onnx.ModelProto
    spec: InputSpec
    images: npt.NDArray[Any]
    metadata: Mapping[str, str]
    ir_version: int
    statistics: dict[int, TensorStatistics] = field(default_factory=dict)

    @classmethod
    def from_model(cls, model: onnx.ModelProto, images: npt.NDArray[Any]) -> "Quantizer":
        """Return a quantizer of an exported FP32 model, which is not modified.

        Raises:
            InputError: The model does not begin with the input adapter of an exported student.
        """
        metadata = {item.key: item.value for item in model.metadata_props}
        spec = read_spec(model)
        assert spec is not None  # `read_model` checks it
        core = _preprocess(cut_input_adapter(model, spec))
        return cls(core, core, spec, images, metadata, model.ir_version)

    def equivalent(self, core: onnx.ModelProto) -> "Quantizer":
        """Return a quantizer of an equivalent core with other tensors, without statistics."""
        return dataclasses.replace(self, core=core, original=core, statistics={})

    def repaired(self, core: onnx.ModelProto) -> "Quantizer":
        """Return a quantizer of a core with repaired weights, with the ranges of the original core."""
        return dataclasses.replace(self, core=core)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the `kdedge.export.lookup.layers`, in the order of the graph."""
        return tuple(node.name for node in lookup.layers(self.core.graph))

    @property
    def adopted(self) -> bool:
        """Whether kdedge did not train the model, so that it may have any operator."""
        return ADOPTED in self.metadata

    def build(self, candidate: Candidate, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> bytes:
        """Return the deployed model of a candidate: raw inputs, integer arithmetic, float logits out.

        Args:
            candidate: How to quantize.
            only: Names of the nodes to quantize. Default: all.
            exclude: Names of nodes that stay in float.
        """
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        core = onnx.ModelProto()
        core.CopyFrom(self.core)
        types = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
        ranges = {
            name: (np.array(low, np.float32), np.array(high, np.float32))
            for name, (low, high) in self.ranges(candidate).items()
        }
        quantizer = QDQQuantizer(
            core,
            candidate.per_channel,
            candidate.reduce_range,
            types[candidate.weights],
            types[candidate.activations],
            TensorsData(CalibrationMethod.MinMax, ranges),
            list(only),
            [
                *exclude,
                *_after_the_last_layer(core.graph),
                *_without_range(core.graph, ranges),
                *_clips_without_zero(core.graph),
            ],
            OP_TYPES,
            # The last matrix product returns float logits from its 32-bit sums: rounding them to 8 bits would lose
            # accuracy and add two operators.
            {"OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUT},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model = quantizer.model.model
        add_input_adapter(model, self.spec)
        keep_float(model)
        quantizer.model.topological_sort()
        _finish(model, {**self.metadata, "kdedge.quantization": candidate.name}, self.ir_version)
        return bytes(model.SerializeToString(deterministic=True))

    def ranges(self, candidate: Candidate) -> dict[str, tuple[float, float]]:
        """Return the range (lowest, highest) of every tensor for a candidate."""
        count = min(candidate.calibration_images, len(self.images))
        if count not in self.statistics:
            self.statistics[count] = TensorStatistics.measure(self.original, self.images[:count], self.spec)
        return self.statistics[count].ranges(candidate.calibrator)


def _after_the_last_layer(graph: onnx.GraphProto) -> list[str]:
    """Return the name of the operator that returns the logits, unless it is a matrix product: it stays in float."""
    last = lookup.producers(graph)["logits"]
    return [] if last.op_type in _FLOAT_OUTPUT else [last.name]


def _without_range(graph: onnx.GraphProto, ranges: Mapping[str, Any]) -> list[str]:
    """Return the names of operators on tensors that are not float or have no batch, such as a computed padding."""
    known = {*ranges, *lookup.initializers(graph), ""}
    return [
        node.name
        for node in graph.node
        if not known.issuperset([*node.input[: 1 if node.op_type == "Reshape" else None], *node.output])
    ]


def _clips_without_zero(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the Clips between bounds without 0.

    onnxruntime removes a Clip behind a layer, because the range of its result does the same. Every range includes 0.
    """
    constants = {name: array for name, array in lookup.arrays(graph).items() if array.size == 1}
    found = []
    for node in graph.node:
        if node.op_type == "Clip":
            low, high, *_ = (constants.get(name, np.zeros(1)).item() for name in [*node.input[1:], "", ""])
            found += [node.name] * (low > 0 or high < 0)
    return found


def _preprocess(core: onnx.ModelProto) -> onnx.ModelProto:
    """Fold and infer shapes with onnxruntime's ``quant_pre_process``."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _pool_instead_of_mean(core)
    with scratch_dir() as folder:
        source, target = Path(folder) / "core.onnx", Path(folder) / "processed.onnx"
        onnx.save(core, source)
        # As files: onnxruntime 1.32 moves the weights of a model in memory into a file that it then loses. Symbolic
        # shape inference requires sympy and adds nothing for a convolutional network.
        quant_pre_process(source, target, skip_symbolic_shape=True)
        processed = onnx.load(target)
    _convolve_instead_of_normalise(processed.graph)
    _without_factors(processed.graph)
    drop_unused(processed.graph)
    return processed


def _convolve_instead_of_normalise(graph: onnx.GraphProto) -> None:
    """Replace batch norms of images that onnxruntime could not fold by a 1x1 convolution with a filter per channel."""
    constants = lookup.arrays(graph)
    images = {value.name for value in (*graph.value_info, *graph.input) if len(value.type.tensor_type.shape.dim) == 4}
    for index, node in enumerate(graph.node):
        if node.op_type != "BatchNormalization" or node.input[0] not in images:
            continue
        scale, bias, mean, variance = (constants[name] for name in node.input[1:])
        factor = scale / np.sqrt(variance + lookup.attributes(node).get("epsilon", 1e-5))
        values = {"weight": factor.reshape(-1, 1, 1, 1), "bias": bias - mean * factor}
        names = [f"{node.name}/{part}" for part in values]
        for name, value in zip(names, values.values(), strict=True):
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        convolution = helper.make_node(
            "Conv", [node.input[0], *names], node.output[:1], name=node.name, group=len(factor)
        )
        graph.node[index].CopyFrom(convolution)


def _without_factors(graph: onnx.GraphProto) -> None:
    """Give each Gemm weights without a factor, and a bias ``[out]`` without one.

    onnxruntime leaves a Gemm with a bias and a factor of its product in float, fails on other shapes of the bias, and
    ignores its factor.
    """
    constants = lookup.arrays(graph)
    for node in graph.node:
        if node.op_type != "Gemm" or not constants.keys() >= {*node.input[1:]} - {""}:
            continue
        options, weight = lookup.attributes(node), constants[node.input[1]]
        if (factor := options.get("alpha", 1.0)) != 1:
            _replace(graph, node, 1, np.float32(factor) * weight, "alpha")
        if len(node.input) < 3 or not node.input[2]:
            continue
        outputs, factor = weight.shape[0 if options.get("transB") else 1], options.get("beta", 1.0)
        bias = constants[node.input[2]]
        if bias.size in (1, outputs) and (bias.shape != (outputs,) or factor != 1):
            _replace(graph, node, 2, np.float32(factor) * np.broadcast_to(bias.ravel(), outputs), "beta")


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, values: np.ndarray, factor: str) -> None:
    """Connect an input of a Gemm to new values, which contain its factor."""
    node.input[index] = f"{node.name}/{'weight' if index == 1 else 'bias'}"
    graph.initializer.append(numpy_helper.from_array(values, node.input[index]))
    for item in node.attribute:
        if item.name == factor:
            item.f = 1.0


def _pool_instead_of_mean(core: onnx.ModelProto) -> None:
    """Replace means over height and width by GlobalAveragePool: ReduceMean has no integer kernel."""
    constants, nodes = lookup.arrays(core.graph), []
    types = {item.name: item.type.tensor_type for item in onnx.shape_inference.infer_shapes(core).graph.value_info}
    not_maps = {name for name, kind in types.items() if kind.HasField("shape") and len(kind.shape.dim) != 4}
    for node in core.graph.node:
        options = lookup.attributes(node)
        if len(node.input) > 1 and node.input[1] in constants:
            axes = constants[node.input[1]].tolist()
        else:
            axes = options.get("axes", [])  # up to opset 17
        on_maps = node.op_type == "ReduceMean" and node.input[0] not in not_maps
        if not on_maps or sorted(axis % 4 for axis in axes) != [2, 3]:
            nodes.append(node)
        elif options.get("keepdims", 1):
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], node.output, name=node.name))
        else:
            pooled = f"{node.output[0]}/pooled"
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
            nodes.append(helper.make_node("Flatten", [pooled], node.output, name=f"{node.name}/flatten"))
    del core.graph.node[:]
    core.graph.node.extend(nodes)
    drop_unused(core.graph)


def _finish(model: onnx.ModelProto, metadata: Mapping[str, str], ir_version: int) -> None:
    """Set the metadata, remove the leftovers of onnxruntime's tools, and check the model."""
    for item in [item for item in model.opset_import if item.domain]:
        model.opset_import.remove(item)
    model.ir_version = ir_version
    model.doc_string = model.graph.doc_string = ""
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)

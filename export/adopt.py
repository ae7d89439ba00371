"""Rewrites an ONNX classifier that kdedge did not train as a deployed FP32 model, so that all later stages take it.

The result begins like an exported student: ``pixels uint8 NHWC → Cast → Mul(1/255) → Transpose``. The normalisation of
the images follows as a 1x1 convolution with a filter per colour, which becomes an integer kernel like any other. The
batch is dynamic, and the output is ``logits`` float32 ``[N, C]``, without a Softmax: users of the model compute it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, inliner, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from kdedge import __version__
from kdedge.benchmarks.input_adapter import Classifier, Preprocessing
from kdedge.benchmarks.session import CPU, first_line, import_onnxruntime, onnxruntime_errors, session_options
from kdedge.errors import InputError
from kdedge.export.graph import ADOPTED, IR_VERSION, count_macs, drop_unused
from kdedge.export.lookup import arrays, attributes, dimensions, producers, readers, rename
from kdedge.files import write_atomic
from kdedge.inputs import image_input
from kdedge.machine import usable_cores
from kdedge.progress import warn

__all__ = ["adopt_model", "weight_files"]

_LOWEST_OPSET = 13  # the first with a scale per channel
_TOLERANCE = 1e-3  # of the largest logit; CPUs add float numbers in different orders
_MOST_ROUNDING = 0.02  # of the largest logit, for networks that amplify rounding
_PREFIX = "model/"


def adopt_model(
    source: Classifier, preprocessing: Preprocessing, class_names: Sequence[str], target: Path, *, resize_mode: str
) -> dict[str, Any]:
    """Rewrite a classifier with one image input and one output ``[N, C]``.

    Args:
        source: The model; files with its weights may be next to it.
        preprocessing: From pixels to its input, if it takes floats.
        class_names: The C classes, in the order of its logits.
        target: The file to write.
        resize_mode: How images become square, for users of the model.

    Returns:
        ``adopted``, the name of the file, ``params``, ``macs``, ``opset``, ``bytes``, and ``max_abs_diff``, the largest
        difference from the logits of the source, or from its probabilities if it ends with a Softmax.

    Raises:
        InputError: The model has types or operators that cannot be rewritten, or computes other logits afterwards.
    """
    if source.dtype == np.float16:
        raise InputError(f"{source.path} takes float16; expected float or uint8", "export the model in float32")
    if source.grey:
        raise InputError(f"{source.path} takes one channel; expected three", "export the model for RGB images")
    model = compose.add_prefix(_load(source.path), _PREFIX, rename_nodes=False)
    graph = model.graph
    _constants_as_initializers(graph)
    _check_types(source.path, graph)
    _name_nodes(graph)
    _free_batch(model)
    tensor = graph.input[0].name
    if not source.takes_floats:
        tensor = _without_cast(source.path, graph, tensor)
        preprocessing = Preprocessing(scale=1.0)  # 0 to 255
    _begin_with_pixels(graph, tensor, source, preprocessing)
    softmax = _without_softmax(graph)
    _end_with_logits(graph, len(class_names))
    drop_unused(graph)
    helper.set_model_props(
        model,
        {
            "kdedge.version": __version__,
            ADOPTED: source.path.name,
            "kdedge.classes": json.dumps(list(class_names)),
            "kdedge.image_size": str(source.image_size),
            "kdedge.pixels": "uint8 RGB NHWC, 0..255",
            "kdedge.preprocessing": json.dumps(image_input(source.image_size, resize_mode).as_json()),
        },
    )
    model.ir_version = IR_VERSION
    data = model.SerializeToString(deterministic=True)
    difference = _check_logits(source, preprocessing, data, len(class_names), softmax=softmax)
    write_atomic(target, data)
    return {
        "adopted": source.path.name,
        "params": sum(array.size for array in arrays(graph).values() if array.dtype == np.float32),
        "macs": count_macs(model),
        "opset": next(item.version for item in model.opset_import if not item.domain),
        "bytes": len(data),
        "max_abs_diff": difference,
    }


def weight_files(source: Path) -> list[Path]:
    """Return the files next to a model that have its weights; none if it has them itself."""
    tensors = onnx.load(source, load_external_data=False).graph.initializer
    names = {item.value for tensor in tensors for item in tensor.external_data if item.key == "location"}
    return [source.parent / name for name in sorted(names)]


def _load(source: Path) -> onnx.ModelProto:
    """Load a model with its external data and without functions, in an opset that the quantization can use."""
    if links := [path for path in weight_files(source) if path.is_symlink()]:
        raise InputError(f"{source} has its weights in {links[0].name}, which is a link", "copy the files: cp -rL")
    try:
        model = onnx.load(source)
        opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        if opset < _LOWEST_OPSET:
            model = version_converter.convert_version(model, _LOWEST_OPSET)
    except (OSError, RuntimeError, ValueError, onnx.checker.ValidationError, version_converter.ConvertError) as error:
        raise InputError(f"cannot read {source}: {str(error).splitlines()[0]}", "export it again, opset 18") from error
    model = inliner.inline_local_functions(model) if model.functions else model
    for item in (*model.opset_import, *model.graph.node):
        item.domain = "" if item.domain == "ai.onnx" else item.domain  # two names of the same operators
    if other := next((node for node in model.graph.node if node.domain), None):
        raise InputError(
            f"{source} has the operator {other.op_type} of {other.domain}; expected operators of ONNX",
            "give the model as it was before onnxruntime optimized it, or export it again, opset 18",
        )
    return model


def _constants_as_initializers(graph: onnx.GraphProto) -> None:
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        if "value" in attributes(node):
            tensor = attributes(node)["value"]
        elif attributes(node).keys() & {"value_float", "value_floats", "value_int", "value_ints"}:
            (value,) = ReferenceEvaluator(node).run(None, {})
            tensor = numpy_helper.from_array(np.asarray(value))
        else:
            continue
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
    _fold_integers(graph)
    # Old files list the weights among the inputs.
    names = {item.name for item in graph.initializer}
    for value in [value for value in graph.input if value.name in names]:
        graph.input.remove(value)


def _check_types(source: Path, graph: onnx.GraphProto) -> None:
    """Refuse layers whose weights are not float32."""
    types = {item.name: item.data_type for item in graph.initializer}
    for node in graph.node:
        for kind in {types.get(name) for name in node.input} & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
            found = str(TensorProto.DataType.Name(kind)).lower()
            raise InputError(f"{source} has weights in {found}; expected float32", "export the model in float32")


def _fold_integers(graph: onnx.GraphProto) -> None:
    """Compute what depends on integer constants only: bounds, and shapes for shape inference."""
    constants = {name: array for name, array in arrays(graph).items() if array.dtype == np.int64}
    for node in list(graph.node):
        if not node.input or node.domain or len(node.output) > 1 or not constants.keys() >= set(node.input):
            continue
        (value,) = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input})
        if np.asarray(value).dtype == np.int64:
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), node.output[0]))
            constants[node.output[0]] = np.asarray(value)
            graph.node.remove(node)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: the quantization addresses layers by name."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def _free_batch(model: onnx.ModelProto) -> None:
    """Let a model with a fixed batch take any: its Reshape nodes leave the first axis open.

    The first axis of a result counts as the batch, or as the batch times windows of an image. A wrong guess changes the
    logits, which are compared.
    """
    graph = model.graph
    batch = dimensions(graph.input[0])[0]
    if batch:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {value.name: dimensions(value) for value in inferred.value_info}
        constants, of_images = arrays(graph), {graph.input[0].name}
        for node in graph.node:
            if node.op_type == "Shape" or of_images.isdisjoint(node.input):
                continue
            of_images.update(node.output)
            if node.op_type != "Reshape" or node.input[1] not in constants:
                continue
            shape, result = constants[node.input[1]].copy(), shapes.get(node.output[0], [])
            if result and all(result) and result[0] % batch == 0:
                shape = np.array([-1, *result[1:]])
            elif shape.size and shape[0] == batch:
                shape[0] = 0
            else:
                continue
            graph.initializer.append(numpy_helper.from_array(shape, f"{node.name}/shape"))
            node.input[1] = graph.initializer[-1].name
            _remove_attribute(node, "allowzero")
    del graph.value_info[:]


def _without_cast(source: Path, graph: onnx.GraphProto, tensor: str) -> str:
    """Remove the Cast behind an input of uint8 pixels; return the name of its float output."""
    casts = readers(graph, tensor)
    if len(casts) != 1 or casts[0].op_type != "Cast" or attributes(casts[0])["to"] != TensorProto.FLOAT:
        raise InputError(
            f"{source} takes uint8 pixels, which {casts[0].name} ({casts[0].op_type}) reads; expected a Cast to float",
            "export the model with a float input",
        )
    graph.node.remove(casts[0])
    return str(casts[0].output[0])


def _begin_with_pixels(graph: onnx.GraphProto, tensor: str, source: Classifier, preprocessing: Preprocessing) -> None:
    """Put ``pixels → Cast → Mul(1/255) → Transpose`` and the normalisation in front of the graph."""
    std = np.array(preprocessing.std)
    weights = (255 * preprocessing.scale / std).astype(np.float32).reshape(3, 1, 1, 1)
    bias = (-np.array(preprocessing.mean) / std).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["pixels/float"], name="pixels/float", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels/float", "pixels/255"], ["pixels/scaled"], name="pixels/scaled"),
        helper.make_node("Transpose", ["pixels/scaled"], ["pixels/nchw"], name="pixels/nchw", perm=[0, 3, 1, 2]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "pixels/255"))
    if (weights != 1).any() or bias.any():
        graph.initializer.append(numpy_helper.from_array(weights, "normalise/weight"))
        graph.initializer.append(numpy_helper.from_array(bias, "normalise/bias"))
        inputs = [nodes[-1].output[0], "normalise/weight", "normalise/bias"]
        nodes.append(helper.make_node("Conv", inputs, ["normalise/out"], name="normalise", group=3))
    if source.layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [nodes[-1].output[0]], ["nhwc"], name="nhwc", perm=[0, 2, 3, 1]))
    rename(graph, tensor, nodes[-1].output[0])
    nodes += graph.node
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(
        helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", source.image_size, source.image_size, 3])
    )


def _without_softmax(graph: onnx.GraphProto) -> bool:
    """Remove a Softmax over the classes that returns the output; return whether there was one."""
    output = graph.output[0].name
    node = producers(graph).get(output)
    if node is None or node.op_type != "Softmax" or readers(graph, output):
        return False
    if attributes(node).get("axis", -1) not in (1, -1):
        return False
    graph.output[0].name = node.input[0]
    graph.node.remove(node)
    return True


def _end_with_logits(graph: onnx.GraphProto, classes: int) -> None:
    """Call the output ``logits``."""
    last = graph.output[0].name
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == last:
                    names[index] = "logits"
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]))


def _check_logits(
    source: Classifier, preprocessing: Preprocessing, data: bytes, classes: int, *, softmax: bool
) -> float:
    """Compare the logits with those of the source at batch 1 and 3; return the largest difference.

    With ``softmax`` the source returns the probabilities of these logits, which are compared instead.

    Networks that amplify rounding (many batch norms behind random weights) may differ by as much as the source does
    from itself without onnxruntime's fusions.
    """
    pixels = image_input(source.image_size).smooth(6, np.random.default_rng(0))
    expected = source.logits(pixels, preprocessing, classes)
    hint = "export it with a dynamic batch" if source.batch else "export it in float32 with another opset, such as 18"
    try:
        session = import_onnxruntime().InferenceSession(data, session_options(usable_cores()), providers=[CPU])
        parts = [[session.run(None, {"pixels": part})[0] for part in np.split(pixels, count)] for count in (6, 2)]
    except onnxruntime_errors() as error:
        raise InputError(f"{source.path} cannot be rewritten for any batch: {first_line(error)}", hint) from error
    found = [np.concatenate(part) for part in parts]
    if softmax:
        exps = [np.exp(logits - logits.max(1, keepdims=True)) for logits in found]
        found = [part / part.sum(1, keepdims=True) for part in exps]
    if any(logits.shape != expected.shape for logits in found):
        raise InputError(
            f"{source.path} returns logits of another shape for one image than for several",
            "export it so that the output is [N, C] for any N: squeeze only the axes of height and width",
        )
    difference = max(float(np.abs(logits - expected).max()) for logits in found)
    largest = float(np.abs(expected).max())
    if difference <= _TOLERANCE * largest:
        return difference
    rounding = float(np.abs(_without_fusions(source).logits(pixels, preprocessing, classes) - expected).max())
    if not difference <= min(2 * rounding, _MOST_ROUNDING * largest):
        raise InputError(
            f"{source.path} rewritten for any batch computes other logits (largest difference {difference:.3g})", hint
        )
    warn(
        f"{source.path} amplifies rounding: its own logits change by up to {rounding:.3g} (the largest is "
        f"{largest:.3g}) without onnxruntime's fusions; predictions may differ between CPUs"
    )
    return difference


def _without_fusions(source: Classifier) -> Classifier:
    """Return a classifier that runs operator by operator, with the rounding of each."""
    runtime, options = import_onnxruntime(), session_options(usable_cores())
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return replace(source, session=runtime.InferenceSession(source.path, options, providers=[CPU]))


def _remove_attribute(node: onnx.NodeProto, name: str) -> None:
    for item in [item for item in node.attribute if item.name == name]:
        node.attribute.remove(item)

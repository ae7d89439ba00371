"""Small networks with uneven weights, their quantizers, and how closely INT8 follows them."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate, score
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.inputs import image_input

PER_TENSOR = Candidate(per_channel=False, calibration_images=128)


def images(count: int, seed: int = 0) -> Any:
    """Smooth images: noise of 2 x 2 patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3))
    return np.repeat(np.repeat(patches, 2, 1), 2, 2).astype(np.uint8)


def core(*, spread: float = 0.0, balanced: bool = False) -> onnx.ModelProto:
    """Three convolutions and a matrix product with random weights.

    ``spread``: channels of the first two convolutions are scaled by factors over so many decades and scaled back in the
    next layer, which changes nothing in float. ``balanced``: no class always wins.
    """
    rng = np.random.default_rng(3)
    shapes = {"conv1": (16, 3, 3, 3), "conv2": (16, 16, 3, 3), "conv3": (16, 16, 3, 3), "fc": (4, 16)}
    weights = {
        name: rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }
    biases = {name: rng.normal(0, 0.1, shape[0]).astype(np.float32) for name, shape in shapes.items()}
    for first, second in (("conv1", "conv2"), ("conv2", "conv3")):
        factor = (10 ** rng.uniform(-spread / 2, spread / 2, 16)).astype(np.float32)
        weights[first] *= factor[:, None, None, None]
        biases[first] *= factor
        weights[second] /= factor[None, :, None, None]
    nodes = []
    tensor = "image"
    for index in (1, 2, 3):
        name = f"conv{index}"
        inputs = [tensor, f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.out"], name=name, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"relu{index}"], name=f"relu{index}"))
        tensor = f"relu{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"))
    nodes.append(helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc", transB=1))
    constants = [numpy_helper.from_array(value, f"{name}.w") for name, value in weights.items()]
    constants += [numpy_helper.from_array(value, f"{name}.b") for name, value in biases.items()]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if not balanced:
        return model
    changed = Weights(model)
    logits = tensor_runner(model, ["logits"])(images(200, seed=4))[0]
    changed.set_bias(changed.layers[-1], changed.bias(changed.layers[-1]) - logits.mean(0))
    return changed.core


def quantizer_of(model: onnx.ModelProto, *, blue: bool = True) -> Quantizer:
    pixels = images(256)
    pixels[..., 2] *= blue
    return Quantizer(model, model, image_input(pixels.shape[1]), pixels, {}, 10)


def sqnr(quantizer: Quantizer, candidate: Candidate, reference: onnx.ModelProto) -> float:
    """Return the SQNR of the logits in dB on images that nothing was fitted to."""
    unseen = images(256, seed=5)
    model = onnx.load_model_from_string(quantizer.build(candidate))
    logits = tensor_runner(model, ["logits"])(unseen)[0]
    expected = tensor_runner(reference, ["logits"])(unseen)[0]
    return score(expected, logits, expected.argmax(1)).sqnr_db

"""The time saved by an INT8 model that takes uint8 pixels and computes in integers from the first convolution on.

    python experiments/pixel_front.py [--bundle DIR] [--batches 1 32] [--seconds 20]

Three ways from the pixels of a decoder to the same logits, around the same quantized network:

- **deployed**: the model of the bundle; the pixels enter the first convolution as they are.
- **front in the graph**: uint8 NHWC → Cast → Mul(1/255) → Transpose → QuantizeLinear, as from quantizing the
  whole exported model.
- **front in numpy**: the graph takes float32 NCHW and begins with a QuantizeLinear; numpy scales and transposes the
  pixels, and its time is counted.

All three must return the same logits to the bit. They take turns in windows on one thread. Prints a Markdown
table with a row per way and batch size; the operators are those of the graph that onnxruntime runs here (it moves a
Transpose of uint8 into the convolution, but not one of floats that come from outside).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdedge.benchmarks.latency import measure_windows, summarise
from kdedge.benchmarks.session import CPU, import_onnxruntime, session_options
from kdedge.benchmarks.stability import judge_windows
from kdedge.export.graph import read_model
from kdedge.export.quantize.proof import integer_proof

BUNDLE = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "bundle"
FRONTS = ("deployed", "front in the graph", "front in numpy")


def with_front(deployed: onnx.ModelProto, front: str) -> onnx.ModelProto:
    """Return a copy of a deployed INT8 model with another front (see `FRONTS`).

    Raises:
        SystemExit: The model does not begin with an integer convolution of its pixels.
    """
    model = onnx.ModelProto()
    model.CopyFrom(deployed)
    if front == "deployed":
        return model
    graph = model.graph
    old = [node for node in graph.node if "pixels" in node.input]
    old += [node for node in graph.node if old[0].output[0] in node.input]
    constants = {item.name: item for item in graph.initializer}
    # A first layer in float has a scale per channel (see `kdedge.export.graph.keep_float`).
    if [node.op_type for node in old] != ["DequantizeLinear", "Transpose"] or constants[old[0].input[1]].dims:
        raise SystemExit("the model does not enter its pixels into an integer convolution; use another --bundle")
    (_, *parameters), (image,) = old[0].input, old[1].output
    size = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    if front == "front in numpy":
        inputs = [helper.make_tensor_value_info("floats", TensorProto.FLOAT, ["batch", 3, size, size])]
        nodes = []
    else:
        inputs = list(graph.input)
        graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "factor"))
        nodes = [
            helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["cast", "factor"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["floats"], perm=[0, 3, 1, 2]),
        ]
    nodes += [
        helper.make_node("QuantizeLinear", ["floats", *parameters], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", *parameters], [image]),
        *(node for node in graph.node if node not in old),
    ]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def to_floats(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Scale ``[N, S, S, 3] uint8`` to 0..1 and transpose to ``[N, 3, S, S] float32``."""
    return np.ascontiguousarray((pixels.astype(np.float32) * np.float32(1 / 255)).transpose(0, 3, 1, 2))


def caller(model: bytes, front: str, pixels: npt.NDArray[np.uint8]) -> Callable[[], list[Any]]:
    """Return the call that takes fixed pixels to logits, on one thread."""
    session = import_onnxruntime().InferenceSession(model, session_options(1), providers=[CPU])
    if front == "front in numpy":
        return lambda: list(session.run(["logits"], {"floats": to_floats(pixels)}))
    feed = {"pixels": pixels}
    return lambda: list(session.run(["logits"], feed))


def main() -> None:
    """Check, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder with student.int8.onnx")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time per way and batch size")
    options = parser.parse_args()

    deployed = read_model(options.bundle / "student.int8.onnx")
    size = deployed.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    models = {front: with_front(deployed, front).SerializeToString() for front in FRONTS}
    operators = {front: integer_proof(model)["before_first_conv"] for front, model in models.items()}
    print("| way | operators before the first convolution | batch | p50 ms | p90 ms | against deployed | trust |")
    print("|---|---|---|---|---|---|---|")
    for batch in options.batches:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        calls = {front: caller(model, front, pixels) for front, model in models.items()}
        logits = {front: call()[0] for front, call in calls.items()}
        for front, values in logits.items():
            if not np.array_equal(values, logits["deployed"]):
                raise SystemExit(f"{front} returns other logits than the deployed model: nothing to compare")
        measured = measure_windows(calls, options.seconds)
        rows = {front: summarise(found.windows, batch) for front, found in measured.items()}
        for front, row in rows.items():
            listed = ["Cast, Mul, Transpose in numpy"] * (front == "front in numpy") + operators[front]
            p90 = "–" if row["p90_ms"] is None else f"{row['p90_ms']:.3f}"
            verdict = judge_windows(measured[front].windows, 1, 1)["verdict"]
            print(
                f"| {front} | {', '.join(listed) or 'none'} | {batch} | {row['p50_ms']:.3f} | {p90} "
                f"| {row['p50_ms'] / rows['deployed']['p50_ms']:.3f} | {verdict} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Find the first operator of an INT8 model whose output differs on an emulated CPU.

    python experiments/operator_differences.py BUNDLE [--cpu cortex-a76] [--inputs 4]

Every quantized output becomes a part of one long output, by a DequantizeLinear of its own, so that onnxruntime fuses
the operators as before. Prints a line per operator: the largest difference from this host in quantization steps, and
the share of values that differ.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdedge.benchmarks.emulate.cpus import CPUS
from kdedge.benchmarks.emulate.emulator import emulate
from kdedge.benchmarks.session import import_onnxruntime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cpu", choices=list(CPUS), default="cortex-a76")
    parser.add_argument("--inputs", type=int, default=4)
    options = parser.parse_args()
    inputs = np.load(options.bundle / "golden_inputs.npy")[: options.inputs]
    model, operators = with_all_outputs(onnx.load(options.bundle / "student.int8.onnx"))
    session = import_onnxruntime().InferenceSession(model.SerializeToString())
    sizes = [part.shape[1] for part in session.run([flat for flat, _, _ in operators], {"pixels": inputs})]
    del model.graph.output[1:]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "operators.onnx"
        onnx.save(model, path)
        found = emulate(path, inputs, options.cpu)
    bounds = np.cumsum(sizes)[:-1]
    there, here = (np.split(logits, bounds, axis=1) for logits in (found.logits, found.native_logits))
    for (_, name, step), a, b in zip(operators, here, there, strict=True):
        steps = np.abs(a - b) / step
        print(f"{name}: {steps.max():.0f} steps, {100 * (steps > 0.5).mean():.3f} % of {a.size} values")


def with_all_outputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[str, str, float]]]:
    """Return a model whose first output, ``logits``, has the values of all quantized outputs, the others each of them.

    Returns:
        The model, and for each quantized output the name of its values, its operator and its quantization step.
    """
    graph = model.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    operators, nodes = [], []
    for number, quantize in enumerate(node for node in graph.node if node.op_type == "QuantizeLinear"):
        source = producers[quantize.input[0]]
        while source.op_type == "Relu":
            source = producers[source.input[0]]
        real, flat = f"operator.{number}", f"operator.{number}.flat"
        nodes.append(helper.make_node("DequantizeLinear", [quantize.output[0], *quantize.input[1:]], [real]))
        nodes.append(helper.make_node("Flatten", [real], [flat]))
        operators.append((flat, f"{source.op_type} {source.name}", float(constants[quantize.input[1]].max())))
    for node in graph.node:
        node.output[:] = ["classified" if name == "logits" else name for name in node.output]
    graph.node.extend([*nodes, helper.make_node("Concat", [flat for flat, _, _ in operators], ["logits"], axis=1)])
    del graph.output[:], model.metadata_props[:]
    names = ["logits", *(flat for flat, _, _ in operators)]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None]))
    return model, operators


if __name__ == "__main__":
    main()

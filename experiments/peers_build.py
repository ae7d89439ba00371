"""Quantize the student with one other toolkit, by its defaults; `experiments/peers.py` calls this.

    python experiments/peers_build.py nncf|inc|litert FOLDER

Reads FOLDER/student.onnx and FOLDER/calibration.npy (uint8 ``[N, S, S, 3]``) and writes the toolkit's files there. It
imports nothing of kdedge, because the toolkits need versions of packages that exclude each other: each can run in
another environment.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def nncf(folder: Path, images: Any) -> None:
    """NNCF on OpenVINO's graph: ov_fp32.xml and ov_int8.xml, each with a .bin."""
    import nncf as toolkit
    import openvino

    model = openvino.convert_model(folder / "student.onnx")
    openvino.save_model(model, folder / "ov_fp32.xml", compress_to_fp16=False)
    # NNCF's own default is 300 images; all toolkits get the same.
    quantized = toolkit.quantize(model, toolkit.Dataset([image[None] for image in images]), subset_size=len(images))
    openvino.save_model(quantized, folder / "ov_int8.xml")


def inc(folder: Path, images: Any) -> None:
    """Intel Neural Compressor 2, the last series with ONNX models: inc.onnx."""
    import onnx
    from neural_compressor import PostTrainingQuantConfig, quantization

    class Loader:
        batch_size = 1

        def __iter__(self) -> Any:
            return ((image[None], 0) for image in images)

    os.chdir(folder)  # it leaves its log of the search in the current directory
    settings = PostTrainingQuantConfig(approach="static", calibration_sampling_size=[len(images)])
    model = quantization.fit(onnx.load(folder / "student.onnx"), settings, calib_dataloader=Loader())
    if model is None:
        raise SystemExit("neural_compressor found no quantized model")
    model.save(str(folder / "inc.onnx"))


def litert(folder: Path, images: Any) -> None:
    """LiteRT: litert-torch and ai-edge-quantizer, for the fixed batches 1 and 32: litert_fp32_1.tflite and so on."""
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    model = litert_torch.to_channel_last_io(_as_torch(folder / "student.onnx"), args=[0])
    for batch in (1, 32):
        path = folder / f"litert_fp32_{batch}.tflite"
        litert_torch.convert(model, (torch.zeros(batch, *images.shape[1:]),)).export(str(path))
        signatures = Interpreter(str(path)).get_signature_list()
        ((signature, names),) = signatures.items()
        scaled = [images[start : start + batch].astype(np.float32) / 255 for start in range(0, len(images), batch)]
        quantize = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        found = quantize.calibrate({signature: [{names["inputs"][0]: values} for values in scaled]})
        quantize.quantize(found).export_model(str(folder / f"litert_int8_{batch}.tflite"), overwrite=True)


def _as_torch(path: Path) -> Any:
    """Return the student behind its input adapter as a PyTorch module: a chain of layers, batch norm already folded."""
    import onnx
    from onnx import numpy_helper
    from torch import from_numpy, nn

    graph = onnx.load(path).graph
    constants = {item.name: from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    layers: list[nn.Module] = []
    for node in graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type in ("Cast", "Mul", "Transpose"):
            continue  # the input adapter
        if node.op_type in ("Conv", "Gemm"):
            weight, bias = constants[node.input[1]], constants[node.input[2]]
            outputs, inputs = weight.shape[:2]
            if node.op_type == "Conv":
                layer: Any = nn.Conv2d(inputs, outputs, weight.shape[2:], padding=tuple(attributes["pads"][:2]))
            else:
                layer = nn.Linear(inputs, outputs)
            layer.load_state_dict({"weight": weight, "bias": bias})
        elif node.op_type == "Relu":
            layer = nn.ReLU()
        elif node.op_type == "MaxPool":
            layer = nn.MaxPool2d(tuple(attributes["kernel_shape"]))
        elif node.op_type == "AveragePool":
            layer = nn.AvgPool2d(tuple(attributes["kernel_shape"]))
        elif node.op_type == "Reshape":
            layer = nn.Flatten()
        else:
            raise SystemExit(f"the student has an operator {node.op_type} that this script does not support")
        layers.append(layer)
    return nn.Sequential(*layers).eval()


if __name__ == "__main__":
    target = Path(sys.argv[2]).resolve()
    {"nncf": nncf, "inc": inc, "litert": litert}[sys.argv[1]](target, np.load(target / "calibration.npy"))

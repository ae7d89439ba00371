"""Adopt and quantize exports of torchvision and timm with random weights: what stays in float, and why.

    pip install timm && python experiments/model_zoo.py artifacts/reference/studies/model_zoo.csv [NETWORK ...]

The rows differ in exporter, opset, IR version, batch and place of the weights. Nothing is trained. Every network gets
the batch norm statistics of images of the sample, and a head whose logits are centred and scaled on them, so that
activations are sane and answers differ. One INT8 model in the portable format is built, without search and repair
steps. The figures are the share of INT8 answers that equal those of FP32 on test images, and the SQNR of the logits.
``one_level_db`` is the SQNR of FP32 logits if the last bit of every pixel is random: networks with random weights
amplify small differences.
"""

import csv
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
import torchvision
from torch import Tensor, nn

from kdedge.benchmarks.input_adapter import PREPROCESSING, open_classifier
from kdedge.benchmarks.session import open_model, run_model
from kdedge.errors import KdedgeError
from kdedge.export.adopt import adopt_model
from kdedge.export.graph import read_model
from kdedge.export.quantize.candidates import Candidate, score
from kdedge.export.quantize.float_reasons import float_operators
from kdedge.export.quantize.proof import integer_proof
from kdedge.export.quantize.quantizer import OP_TYPES, Quantizer
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import opened

CALIBRATION, TEST = 64, 200


@dataclass(frozen=True)
class Export:
    """One network and how it is exported.

    Attributes:
        network: Its name.
        project: ``torchvision`` or ``timm``, also the name of its preprocessing.
        exporter: ``dynamo`` or ``script``.
        opset: The opset.
        batch: Fixed number of images; 0: any.
        ir_version: Written into the file; 0: as exported.
        external: Whether the weights are in another file.
        size: Side length of the images.
    """

    network: str
    project: str
    exporter: str
    opset: int
    batch: int = 0
    ir_version: int = 0
    external: bool = False
    size: int = 64


EXPORTS = (
    Export("squeezenet1_1", "torchvision", "script", 13, ir_version=3),
    Export("mobilenet_v3_small", "torchvision", "script", 13, batch=1),
    Export("shufflenet_v2_x0_5", "torchvision", "script", 17, batch=4),
    Export("resnet18", "torchvision", "dynamo", 18, external=True),
    Export("mobilenet_v2", "torchvision", "dynamo", 22),
    Export("efficientnet_b0", "torchvision", "script", 17),
    Export("convnext_tiny", "torchvision", "script", 20, ir_version=10),
    Export("tinynet_e", "timm", "script", 17, batch=1),
    Export("mobilenetv4_conv_small", "timm", "script", 20),
    Export("ghostnet_100", "timm", "script", 13, batch=1, external=True),
    Export("repvgg_a0", "timm", "script", 17),
    Export("efficientvit_b0", "timm", "script", 20, ir_version=8),
    Export("efficientvit_m0", "timm", "script", 17, batch=1, size=224),
)


def build(item: Export, images: Tensor) -> nn.Module:
    """Return the network with sane statistics and logits, in eval mode."""
    torch.manual_seed(0)
    make = torchvision.models.get_model if item.project == "torchvision" else timm.create_model
    net: nn.Module = make(item.network, num_classes=10).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = None  # the mean of all batches
    with torch.no_grad():
        for batch in images.split(16):
            net(batch)
        logits = torch.cat([net.eval()(batch) for batch in images.split(16)])
        *_, head = (module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
        if isinstance(head, nn.Linear):
            head.weight /= logits.std(0)[:, None]
            head.bias.copy_((head.bias - logits.mean(0)) / logits.std(0))
    return net


def export(item: Export, net: nn.Module, path: Path) -> None:
    """Write the network as ONNX."""
    example = torch.randn(item.batch or 2, 3, item.size, item.size)
    if item.exporter == "script":
        axes = None if item.batch else {"image": {0: "batch"}}
        torch.onnx.export(
            net, (example,), path, dynamo=False, opset_version=item.opset, input_names=["image"], dynamic_axes=axes
        )
    else:
        shapes = None if item.batch else ({0: torch.export.Dim("batch")},)
        torch.onnx.export(net, (example,), path, dynamo=True, opset_version=item.opset, dynamic_shapes=shapes)
    model = onnx.load(path)
    model.ir_version = item.ir_version or model.ir_version
    onnx.save(model, path, save_as_external_data=item.external, location="weights.bin", size_threshold=1024)


def measure(item: Export, folder: Path) -> dict[str, Any]:
    """Export, adopt and quantize one network; return the figures, or the message with which it is refused."""
    dataset = opened(DataConfig(source="sample", image_size=item.size))
    train, test = dataset.train().images[:CALIBRATION], dataset.test().images[:TEST]
    preprocessing = PREPROCESSING[item.project]
    path, fp32, int8 = (folder / name for name in ("net.onnx", "student.onnx", "int8.onnx"))
    export(item, build(item, torch.from_numpy(preprocessing.floats(train).transpose(0, 3, 1, 2))), path)
    stored = onnx.load(path, load_external_data=False)
    row = asdict(item) | {"ir_version": stored.ir_version}
    row["opset"] = next(entry.version for entry in stored.opset_import if not entry.domain)
    try:
        classes = dataset.class_names
        metrics = adopt_model(open_classifier(path), preprocessing, classes, fp32, resize_mode="squeeze")
        model = Quantizer.from_model(read_model(fp32), train).build(Candidate(calibration_images=CALIBRATION))
    except KdedgeError as error:
        return row | {"refused": str(error).removeprefix(f"{path} ")}
    int8.write_bytes(model)
    logits = [run_model(open_model(each), test) for each in (fp32, int8)]
    found = score(logits[0], logits[1], logits[0].argmax(1))
    noise = np.random.default_rng(0).integers(0, 2, test.shape, np.uint8)
    noisy = score(logits[0], run_model(open_model(fp32), test ^ noise), logits[0].argmax(1))
    proof = integer_proof(model)
    reasons = Counter((entry["type"], entry["reason"]) for entry in float_operators(proof, OP_TYPES, ()))
    return row | {
        "params": metrics["params"],
        "largest_logit_difference": f"{metrics['max_abs_diff']:.1e}",
        "integer_layers": proof["integer_convs"] + proof["integer_gemms"],
        "float_layers": len(proof["float_convs"]) + len(proof["float_gemms"]),
        "same_answers_pct": round(100 * float(found.right.mean()), 1),
        "most_frequent_answer_pct": round(100 * max(Counter(logits[0].argmax(1).tolist()).values()) / TEST, 1),
        "sqnr_db": round(found.sqnr_db, 1),
        "one_level_db": round(noisy.sqnr_db, 1),
        "float_operators": "; ".join(f"{count} {kind} ({reason})" for (kind, reason), count in reasons.items()),
    }


def main(target: Path, names: list[str]) -> None:
    """Measure the networks and write the table, also after each row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for item in EXPORTS:
        if names and item.network not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(item, Path(folder)))
        print(rows[-1], flush=True)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with target.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

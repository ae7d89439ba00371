"""Exports the trained student as an ONNX model on raw inputs and compares it with PyTorch.

The graph takes ``pixels`` uint8 ``[N, S, S, C]`` with a dynamic N, scales and transposes them inside
(Cast → Mul(1/255) → Transpose), or ``signal`` float32 ``[N, L, C]`` (Sub → Mul → Unsqueeze → Transpose). It returns
``logits`` float32 ``[N, classes]``; batch norm is folded into the convolutions.
"""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from kdedge import __version__
from kdedge.benchmarks.session import open_model
from kdedge.errors import StageError
from kdedge.export.graph import IR_VERSION, count_macs
from kdedge.files import write_atomic
from kdedge.inputs import InputSpec

__all__ = ["MODEL_NAME", "PARITY_BOUND", "check_parity", "export_student"]

MODEL_NAME = "student.onnx"
PARITY_BOUND = 1e-4
PARITY_BATCHES = (1, 2, 64)


class _OnPixels(nn.Module):
    """The student behind the uint8 NHWC input of the deployed model."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> Tensor:
        """Map uint8 ``[N, S, S, C]`` to logits ``[N, C]``."""
        logits: Tensor = self.student((pixels.to(torch.float32) * (1 / 255)).permute(0, 3, 1, 2))
        return logits


class _OnSignal(nn.Module):
    """The student behind the input of the deployed model in the user's units."""

    mean: Tensor
    scale: Tensor

    def __init__(self, student: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("mean", torch.tensor(spec.mean))
        self.register_buffer("scale", torch.tensor(spec.scale))

    def forward(self, signal: Tensor) -> Tensor:
        """Map float32 ``[N, L, C]`` to logits ``[N, classes]``."""
        logits: Tensor = self.student(((signal - self.mean) * self.scale).unsqueeze(1).permute(0, 3, 1, 2))
        return logits


def _deployed(module: nn.Module, spec: InputSpec) -> nn.Module:
    student = copy.deepcopy(module).to("cpu", torch.float32)
    return (_OnPixels(student) if spec.kind == "image" else _OnSignal(student, spec)).eval()


def export_student(
    module: nn.Module, spec: InputSpec, class_names: Sequence[str], path: Path, opset: int = 18
) -> dict[str, Any]:
    """Write a student as a deployed FP32 ONNX model.

    Args:
        module: Maps normalised float32 ``[N, C, H, W]`` to logits ``[N, classes]``; not modified.
        spec: The input of the deployed model.
        class_names: The class names in the order of the logits.
        path: The file to write.
        opset: ONNX opset, 18 to 20.

    Returns:
        ``params`` (of the module), ``macs`` (per input), ``conv_nodes``, ``opset``, ``bytes``.

    Raises:
        StageError: The exporter failed, or its graph is invalid or has an unfolded batch norm.
    """
    deployed = _deployed(module, spec)
    # Batch 2: an example batch of 1 would be baked into the graph (pytorch #157621).
    example = torch.from_numpy(spec.zeros(2))
    with _quiet() as chatter:
        try:
            program = torch.onnx.export(
                deployed, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset, external_data=False, input_names=[spec.name], output_names=["logits"],
                verbose=False,
            )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            detail = (chatter.getvalue().strip() or str(error).strip()).splitlines()
            raise StageError(f"torch.onnx.export failed: {detail[-1] if detail else error}") from error
    if program is None:
        raise StageError("torch.onnx.export returned no model")
    model, images = program.model_proto, spec.kind == "image"
    _clean(model)
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(
        model,
        {
            "kdedge.version": __version__,
            "kdedge.classes": json.dumps(list(class_names)),
            **(
                {"kdedge.image_size": str(spec.size), "kdedge.pixels": f"uint8 {spec.color} NHWC, 0..255"}
                if images
                else {}
            ),
            "kdedge.preprocessing": json.dumps(spec.as_json()),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    if leftover := [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]:
        raise StageError(f"the exporter left batch norm unfolded in {', '.join(leftover)}; it cannot become INT8")
    data = model.SerializeToString(deterministic=True)
    write_atomic(path, data)
    return {
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "macs": count_macs(model),
        "conv_nodes": sum(node.op_type == "Conv" for node in model.graph.node),
        "opset": opset,
        "bytes": len(data),
    }


def check_parity(module: nn.Module, path: Path) -> dict[str, Any]:
    """Compare the logits of the ONNX model with those of the torch module at batch 1, 2 and 64.

    The largest absolute logit difference must stay below ``PARITY_BOUND`` (1e-4) times the largest absolute logit,
    and all predictions must be equal.

    Returns:
        ``parity_max_abs_diff``, ``parity_logit_scale``, ``parity_batches``.

    Raises:
        StageError: They differ; the message has the numbers.
    """
    model = open_model(path)
    reference = _deployed(module, model.spec)
    rng = np.random.default_rng(20)
    largest = scale = 0.0
    for batch in PARITY_BATCHES:
        inputs = model.spec.smooth(batch, rng)
        with torch.no_grad():
            expected = reference(torch.from_numpy(inputs)).numpy()
        got = model.logits(inputs)
        if got.shape != expected.shape:
            raise StageError(f"{path} returns logits {list(got.shape)} at batch {batch}, not {list(expected.shape)}")
        diff, size = float(np.abs(got - expected).max()), float(np.abs(expected).max())
        flips = int((got.argmax(1) != expected.argmax(1)).sum())
        # Written so that NaN fails too.
        if not diff <= PARITY_BOUND * size or flips:
            raise StageError(
                f"{path} differs from the torch student: at batch {batch} the largest logit difference is {diff:.3g} "
                f"(allowed {PARITY_BOUND * size:.3g}) and {flips} predictions differ",
                "this is a fault of the exporter: try another --opset or torch version",
            )
        largest, scale = max(largest, diff), max(scale, size)
    return {"parity_max_abs_diff": largest, "parity_logit_scale": scale, "parity_batches": list(PARITY_BATCHES)}


def _clean(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which contain paths of this machine, and name layers after their weights."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    model.doc_string = graph.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        if len(node.input) > 1 and node.input[1].endswith(".weight"):
            node.name = node.input[1].removeprefix("student.").removesuffix(".weight")


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Collect the exporter's output instead of showing it."""
    chatter = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            warnings.simplefilter("ignore")
            yield chatter
    finally:
        logging.disable(before)

"""Exports the trained student as an ONNX model on raw pixels and compares it with PyTorch.

The graph takes ``pixels`` uint8 ``[N, S, S, 3]`` with a dynamic N, scales and transposes them inside
(Cast → Mul(1/255) → Transpose), and returns ``logits`` float32 ``[N, C]``; batch norm is folded into the convolutions.
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
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from kdedge import __version__
from kdedge.benchmarks.session import open_model
from kdedge.errors import StageError
from kdedge.export.graph import count_macs
from kdedge.files import write_atomic
from kdedge.preprocessing import RESIZE_MODES, preprocessing

__all__ = ["MODEL_NAME", "PARITY_BOUND", "check_parity", "export_student"]

MODEL_NAME = "student.onnx"
PARITY_BOUND = 1e-4
PARITY_BATCHES = (1, 2, 64)
_IR_VERSION = 8  # old runtimes refuse newer ones, which no operator here needs


class _Deployed(nn.Module):
    """The student behind the uint8 NHWC input of the deployed model."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> Tensor:
        """Map uint8 ``[N, S, S, 3]`` to logits ``[N, C]``."""
        logits: Tensor = self.student((pixels.to(torch.float32) * (1 / 255)).permute(0, 3, 1, 2))
        return logits


def export_student(
    module: nn.Module,
    image_size: int,
    class_names: Sequence[str],
    path: Path,
    *,
    opset: int = 18,
    resize_mode: str = RESIZE_MODES[0],
) -> dict[str, Any]:
    """Write a student as a deployed FP32 ONNX model.

    Args:
        module: Maps float32 ``[N, 3, S, S]`` in 0..1 to logits ``[N, C]``; not modified.
        image_size: S in pixels.
        class_names: The C class names in the order of the logits.
        path: The file to write.
        opset: ONNX opset, 18 to 20.
        resize_mode: How the training images became square, for users of the model.

    Returns:
        ``params`` (of the module), ``macs`` (per image), ``conv_nodes``, ``opset``, ``bytes``.

    Raises:
        StageError: The exporter failed, or its graph is invalid or has an unfolded batch norm.
    """
    deployed = _Deployed(copy.deepcopy(module).to("cpu", torch.float32)).eval()
    # Batch 2: an example batch of 1 would be baked into the graph (pytorch #157621).
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    with _quiet() as chatter:
        try:
            program = torch.onnx.export(
                deployed, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset, external_data=False, input_names=["pixels"], output_names=["logits"],
                verbose=False,
            )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            detail = (chatter.getvalue().strip() or str(error).strip()).splitlines()
            raise StageError(f"torch.onnx.export failed: {detail[-1] if detail else error}") from error
    if program is None:
        raise StageError("torch.onnx.export returned no model")
    model = program.model_proto
    _clean(model)
    model.ir_version = _IR_VERSION
    onnx.helper.set_model_props(
        model,
        {
            "kdedge.version": __version__,
            "kdedge.classes": json.dumps(list(class_names)),
            "kdedge.image_size": str(image_size),
            "kdedge.pixels": "uint8 RGB NHWC, 0..255",
            "kdedge.preprocessing": json.dumps(preprocessing(image_size, resize_mode)),
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
    reference = _Deployed(copy.deepcopy(module).to("cpu", torch.float32)).eval()
    rng = np.random.default_rng(20)
    largest = scale = 0.0
    for batch in PARITY_BATCHES:
        pixels = _test_pixels(rng, batch, model.image_size)
        with torch.no_grad():
            expected = reference(torch.from_numpy(pixels)).numpy()
        got = model.logits(pixels)
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


def _test_pixels(rng: np.random.Generator, count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return smooth random images with some noise, ``[count, size, size, 3] uint8``."""
    blocks = rng.integers(0, 256, (count, 4, 4, 3))
    index = np.arange(size) * 4 // size
    noise = rng.normal(0, 20, (count, size, size, 3))
    return np.clip(blocks[:, index][:, :, index] + noise, 0, 255).astype(np.uint8)


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

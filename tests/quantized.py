"""What the tests of several quantized models measure alike."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate, score
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.quantizer import Quantizer

Logits = npt.NDArray[np.float32]


def trainable_graph_sqnr_db(
    quantizer: Quantizer, candidate: Candidate, pixels: npt.NDArray[np.uint8], exclude: Sequence[str] = ()
) -> float:
    """Return how close the graph that fine-tuning trains is to what onnxruntime computes, in dB."""
    import torch

    from kdedge.export.quantize.torch_graph import TorchGraph

    model = onnx.load_model_from_string(quantizer.build(candidate, exclude=exclude))
    with torch.no_grad():
        graph = TorchGraph(model, Weights(quantizer.core), reduce_range=True)
        got = graph(torch.from_numpy(pixels)).numpy()
    expected = tensor_runner(model, ["logits"])(pixels)[0]
    return score(expected, got, expected.argmax(1)).sqnr_db


def as_written_and_as_run(model: bytes, pixels: npt.NDArray[np.uint8]) -> tuple[Logits, Logits]:
    """Return the logits of a model without onnxruntime's optimisations, and with them."""
    plain = SessionOptions()
    plain.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    written, run = (
        InferenceSession(model, options).run(["logits"], {"pixels": pixels})[0] for options in (plain, SessionOptions())
    )
    return written, run

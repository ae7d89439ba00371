"""Quantization-aware fine-tuning: a short training of the quantized model towards the logits of the float model."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch.nn import functional

from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.torch_graph import TorchGraph
from kdedge.progress import track

__all__ = ["BATCH", "STEPS", "fine_tune"]

STEPS = 400
BATCH = 64
_LEARNING_RATE = 2e-4


def fine_tune(quantizer: Quantizer, candidate: Candidate, images: npt.NDArray[Any]) -> Quantizer:
    """Train the weights of a core through its quantization towards the logits of the original core.

    The loss is the squared error of the logits, relative to the mean square of the original's (matching logits: L. J.
    Ba, R. Caruana, NIPS 2014, arXiv:1312.6184), so no labels are needed. The ranges of the activations stay. Adam, 400
    steps of 64 images, learning rate 2e-4 falling to 0.

    Args:
        quantizer: Quantizer of the core to train.
        candidate: How the core is quantized.
        images: Training images or windows.

    Raises:
        StageError: The graph has an operator that `TorchGraph` does not support.
    """
    weights = Weights(quantizer.core)
    model = onnx.load_model_from_string(quantizer.build(candidate))
    graph = TorchGraph(model, weights, reduce_range=candidate.reduce_range)
    answers = tensor_runner(quantizer.original, ["logits"], quantizer.spec)
    optimizer = torch.optim.Adam(graph.parameters(), lr=_LEARNING_RATE)
    rng = np.random.default_rng(0)
    with track("quantize: fine-tuning", STEPS) as progress:
        for step in range(STEPS):
            batch = images[np.sort(rng.choice(len(images), min(BATCH, len(images)), replace=False))]
            wanted = torch.from_numpy(answers(batch)[0])
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 - step / STEPS)
            loss = functional.mse_loss(graph(torch.from_numpy(batch)), wanted) / wanted.square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.advance()
    for layer in weights.layers:
        key = layer.name.replace(".", "/")
        weights.set_weight(layer, graph.weight[key].detach().numpy())
        weights.set_bias(layer, graph.bias[key].detach().numpy())
    return quantizer.repaired(weights.core)

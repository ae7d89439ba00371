"""Trainings with classes of unequal size: a loss that weighs all classes the same, or epochs that show them equally.

``loss``: the cross-entropy of an image, and its KD term, are weighted by 1 / size of its class (G. King and L. Zeng,
"Logistic Regression in Rare Events Data", Political Analysis 9, 2001). A batch is divided by its sum of weights, so an
image of a rare class has at most the gradient of a whole batch.

``sampler``: class-aware sampling (L. Shen, Z. Lin and Q. Huang, "Relay Backpropagation for Effective Learning of Deep
Convolutional Neural Networks", arXiv:1512.05830). An epoch goes through a rare class several times, with
another augmentation each time, and through a part of a frequent one.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kdedge.pipeline.training import distributed

__all__ = ["balanced_order", "class_shares", "class_weights", "cross_entropy", "weighted_mean"]


def class_shares(labels: NDArray[np.int64], balance: str) -> NDArray[np.float64]:
    """Return the share of each class in the loss, float64 ``[C]``, for labels int64 ``[N]``."""
    counts = np.bincount(labels)
    return counts / len(labels) if balance == "none" else (counts > 0) / np.count_nonzero(counts)


def class_weights(labels: NDArray[np.int64]) -> Tensor:
    """Return the weight of each class, float32 ``[C]``, inversely proportional to its size, with mean 1 over images."""
    counts = np.bincount(labels)
    weights = class_shares(labels, "loss") * len(labels) / np.maximum(counts, 1)
    return torch.from_numpy(weights.astype(np.float32))


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an order in which every class is equally often, in random order.

    Args:
        labels: int64 ``[N]``.
        rng: Source of the permutations.

    Returns:
        Indices, int64 ``[M]``, M at least N; and how often the order already went through the class, int64 ``[M]``.
    """
    classes = np.unique(labels)
    quota = -(-len(labels) // len(classes))
    indices, rounds = [], []
    for label in classes:
        members = np.flatnonzero(labels == label)
        passes = -(-quota // len(members))
        indices.append(np.concatenate([rng.permutation(members) for _ in range(passes)])[:quota])
        rounds.append(np.arange(quota) // len(members))
    shuffled = rng.permutation(quota * len(classes))
    return np.concatenate(indices)[shuffled], np.concatenate(rounds)[shuffled]


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of a batch, a scalar.

    Args:
        logits: float ``[B, C]``.
        targets: int64 ``[B]``, classes; or float ``[B, C]``, their shares in mixed images.
        weights: float ``[C]``; None: every image weighs the same. Unlike in PyTorch, an image has the weight of its own
            class also in the smoothed share of the others, which a rare class would fill otherwise.
        label_smoothing: Share of the target that all classes have equally, 0..1.
    """
    if weights is None:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    each = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    return weighted_mean(each, targets, weights)


def weighted_mean(each: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of the losses of a batch, float ``[B]``, with the weights and targets of `cross_entropy`."""
    weight = targets @ weights if targets.ndim > 1 else weights[targets]
    return (weight * each).sum() / distributed.mean(weight.sum())

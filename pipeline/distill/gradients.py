"""The share of each term of the loss in the student's gradient."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["gradient_shares"]


def gradient_shares(terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """Return the norm of each term's gradient, in percent of the sum of these norms.

    Takes a backward pass per term and leaves the graph and the parameters' ``grad`` as they were.

    Args:
        terms: Weighted terms of the loss by name, scalars with a graph.
        parameters: Weights of the student, without those of the adapters.
    """
    if len(terms) == 1:
        return dict.fromkeys(terms, 100.0)
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(squares).sum().sqrt().item()
    total = sum(norms.values()) or 1.0
    return {name: 100 * norm / total for name, norm in norms.items()}

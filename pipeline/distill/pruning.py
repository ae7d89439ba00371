"""Pruning as a start: the best channels of a wider student of five convolutions, which then trains like any other.

The score of a channel is what its removal changes in the loss, to first order: the size of the sum of activation times
gradient over its map, a mean over images (P. Molchanov et al., "Importance Estimation for Neural Network Pruning",
arXiv:1906.10771). The sum of absolute weights (``l1``) and random numbers are its controls.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdedge.inputs import InputSpec
from kdedge.pipeline.models.student import Student
from kdedge.pipeline.training.batches import Batch

__all__ = ["Widths", "best_channels", "channel_scores", "cost_of", "narrower", "slice_channels"]

Widths = tuple[int, ...]
_MULTIPLE = 16  # of channels: other widths are slower in INT8 (experiments/LOG.md)


def channel_scores(student: Student, batches: Iterable[Batch], by: str) -> list[Tensor]:
    """Return a score per output channel of each block, higher for better channels.

    Args:
        student: In eval mode.
        batches: Training images for ``taylor``.
        by: ``taylor``, ``l1`` or ``random`` (by PyTorch's generator).
    """
    convs = _convs(student)
    if by == "l1":
        return [conv.weight.detach().abs().flatten(1).sum(1).cpu() for conv in convs]
    if by == "random":
        return [torch.rand(conv.out_channels) for conv in convs]
    scores = [torch.zeros(conv.out_channels) for conv in convs]
    for batch in batches:
        maps = student.features(batch.pixels)
        loss = functional.cross_entropy(student.classify(maps[-1]).float(), batch.labels, reduction="sum")
        gradients = torch.autograd.grad(loss, maps)
        for index, (one, gradient) in enumerate(zip(maps, gradients, strict=True)):
            scores[index] += (one.detach() * gradient).float().sum(dim=(2, 3)).abs().sum(0).cpu()
    return scores


def cost_of(student: Student, inputs: InputSpec) -> Callable[[Widths], int]:
    """Return the multiply-accumulates of a student of this wiring as a function of its widths."""
    places: list[int] = []
    convs = _convs(student)
    hooks = [conv.register_forward_hook(lambda _, __, out: places.append(out[0, 0].numel())) for conv in convs]
    weight = convs[0].weight
    with torch.no_grad():
        student(torch.zeros(1, *inputs.core_shape).to(weight))
    for hook in hooks:
        hook.remove()
    channels, taps, classes = weight.shape[1], weight[0, 0].numel(), student.classifier.out_features

    def cost(widths: Widths) -> int:
        in_widths = (channels, *widths)
        convolutions = sum(n * taps * a * b for n, a, b in zip(places, in_widths, widths, strict=False))
        return convolutions + widths[-1] * classes

    return cost


def narrower(widths: Widths, scores: Sequence[Tensor], cost: Callable[[Widths], int], share: float) -> Widths:
    """Return the widths, multiples of 16, at which at most a share of the cost is left.

    Of all layers, the one whose worst channels have the lowest score for the cost that they save is made narrower,
    until the share is reached or every layer has 16 channels.
    """
    most = share * cost(widths)
    ranked = [score.sort().values for score in scores]
    total = tuple(len(score) for score in scores)
    while cost(widths) > most:
        steps = []
        for index, width in enumerate(widths):
            if width > _MULTIPLE:
                fewer = (width - 1) // _MULTIPLE * _MULTIPLE
                next_widths = (*widths[:index], fewer, *widths[index + 1 :])
                lost = ranked[index][total[index] - width : total[index] - fewer].sum().item()
                steps.append((lost / (cost(widths) - cost(next_widths)), next_widths))
        if not steps:
            break
        widths = min(steps)[1]
    return widths


def best_channels(scores: Sequence[Tensor], widths: Widths) -> list[Tensor]:
    """Return the indices of the best channels of each layer, ascending."""
    return [score.topk(width).indices.sort().values for score, width in zip(scores, widths, strict=True)]


@torch.no_grad()
def slice_channels(wide: Student, narrow: Student, kept: Sequence[Tensor]) -> None:
    """Set the weights of a narrow student to those of the kept channels of a wide one of the same wiring."""
    before = torch.arange(_convs(wide)[0].in_channels)
    source, target = wide.state_dict(), narrow.state_dict()
    for index, after in enumerate(kept):
        conv, norm = f"blocks.{index}.conv.weight", f"blocks.{index}.norm."
        target[conv].copy_(source[conv][after][:, before])
        for name in (key for key in target if key.startswith(norm)):
            target[name].copy_(source[name][after] if source[name].ndim else source[name])
        before = after
    target["classifier.weight"].copy_(source["classifier.weight"][:, before])
    target["classifier.bias"].copy_(source["classifier.bias"])


def _convs(student: Student) -> list[nn.Conv2d]:
    return [module for module in student.blocks.modules() if isinstance(module, nn.Conv2d)]

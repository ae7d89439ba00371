"""Hints: pairs of teacher and student blocks, and adapters between them.

`scan_variance` measures the teacher's blocks, a rule of `kdedge.pipeline.distill.blocks` chooses some, `pair_blocks`
finds the student block for each, and `HintAdapters` maps student maps to teacher maps while training.
`measure_similarity` measures any student, with or without hints, through least-squares adapters.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdedge.pipeline.distill.losses import hint_loss
from kdedge.pipeline.models.teacher import FeatureTap, Teacher, hint_candidates

__all__ = ["HintAdapters", "HintPair", "measure_similarity", "pair_blocks", "probe_shapes", "scan_variance"]


@dataclass(frozen=True)
class HintPair:
    """A teacher block and the student block that learns to predict it.

    Attributes:
        teacher_block: Name from `kdedge.pipeline.models.teacher.hint_candidates`.
        student_block: Index of the student block.
        teacher_channels: Channels of the teacher map.
        student_channels: Channels of the student map.
    """

    teacher_block: str
    student_block: int
    teacher_channels: int
    student_channels: int


@torch.no_grad()
def scan_variance(teacher: Teacher, batches: Iterable[Tensor]) -> dict[str, float]:
    """Return the activation variance of every hint candidate, over N, C, H and W, averaged over the batches.

    Args:
        teacher: In eval mode.
        batches: float32 ``[N, 3, S, S]`` in 0..1.
    """
    names = tuple(hint_candidates(teacher))
    sums = dict.fromkeys(names, 0.0)
    count = 0
    with FeatureTap(teacher, names) as tap:
        for pixels in batches:
            teacher(pixels)
            for name in names:
                sums[name] += tap.maps[name].float().var(correction=0).item()
            count += 1
    return {name: total / count for name, total in sums.items()}


def pair_blocks(
    teacher_shapes: dict[str, tuple[int, int]], student_shapes: Sequence[tuple[int, int]]
) -> tuple[HintPair, ...]:
    """Pair teacher blocks with student blocks in depth order at the nearest resolution.

    Of all assignments that keep the depth order (each student block once, as long as there are enough), the one with
    the smallest sum of |log2(teacher side / student side)| wins; of equals, the deepest.

    Args:
        teacher_shapes: (channels, side length) of the chosen teacher blocks, in depth order.
        student_shapes: (channels, side length) of the student's blocks.
    """
    sides = [side for _, side in teacher_shapes.values()]
    if not sides:
        return ()
    places, once = range(len(student_shapes)), len(sides) <= len(student_shapes)

    def cost(side: int, index: int) -> float:
        return abs(math.log2(side / student_shapes[index][1]))

    # best[j]: of the assignments of the sides so far that end at student block j, the cost of the best, and its
    # indices, negative so that of equals the deepest is the smallest.
    best = [(cost(sides[0], index), [-index]) for index in places]
    for side in sides[1:]:
        best = [
            min(
                ((total + cost(side, index), [*path, -index]) for total, path in best[: index + (not once)]),
                default=(math.inf, []),
            )
            for index in places
        ]
    chosen = [-index for index in min(best)[1]]
    return tuple(
        HintPair(name, index, channels, student_shapes[index][0])
        for (name, (channels, _)), index in zip(teacher_shapes.items(), chosen, strict=True)
    )


def _to_common_size(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps to the height and width of the smaller."""
    height, width = (min(student_map.shape[axis], teacher_map.shape[axis]) for axis in (2, 3))
    return (
        functional.adaptive_avg_pool2d(student_map, (height, width)) if student_map.shape[-1] > width else student_map,
        functional.adaptive_avg_pool2d(teacher_map, (height, width)) if teacher_map.shape[-1] > width else teacher_map,
    )


class HintAdapters(nn.Module):
    """1x1 convolution and batch norm per pair, from student to teacher channels. Trained with the student, not shipped.

    Args:
        pairs: The pairs, of blocks that are all different.
        normalised: Whether to divide each loss by the variance of its teacher map, from `calibrate`.

    Attributes:
        chosen: Teacher blocks whose adapters are trained, in depth order; all of them until `choose` is called.
    """

    variances: Tensor

    def __init__(self, pairs: tuple[HintPair, ...], *, normalised: bool) -> None:
        super().__init__()
        self.pairs = pairs
        self.chosen = tuple(pair.teacher_block for pair in pairs)
        self.normalised = normalised
        self.adapters = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(pair.student_channels, pair.teacher_channels, 1, bias=False),
                nn.BatchNorm2d(pair.teacher_channels),
            )
            for pair in pairs
        )
        self.register_buffer("variances", torch.ones(len(pairs)))

    def choose(self, blocks: tuple[str, ...]) -> None:
        """Train the adapters of these teacher blocks from now on; the other adapters keep their weights."""
        self.chosen = blocks

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: dict[str, Tensor]) -> Tensor:
        """Return the hint loss, a scalar: the mean over the chosen pairs.

        Args:
            student_maps: Outputs ``[N, C, H, W]`` of all student blocks.
            teacher_maps: Maps ``[N, C, H, W]`` of the chosen teacher blocks by name.
        """
        losses = []
        for index, (pair, adapter) in enumerate(zip(self.pairs, self.adapters, strict=True)):
            if pair.teacher_block not in self.chosen:
                continue
            student_map, target = _to_common_size(student_maps[pair.student_block], teacher_maps[pair.teacher_block])
            losses.append(hint_loss(adapter(student_map), target, self.variances[index]))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def calibrate(self, student_maps: Sequence[Tensor], teacher_maps: dict[str, Tensor]) -> None:
        """Take the variance of each (pooled) teacher map around its channel means as the unit of its loss."""
        for index, pair in enumerate(self.pairs):
            _, target = _to_common_size(student_maps[pair.student_block], teacher_maps[pair.teacher_block])
            if self.normalised:
                self.variances[index] = target.float().var(dim=(0, 2, 3), correction=0).mean().clamp_min(1e-12)


@torch.no_grad()
def measure_similarity(
    pair: HintPair,
    fit: tuple[Sequence[Tensor], dict[str, Tensor]],
    score: tuple[Sequence[Tensor], dict[str, Tensor]],
) -> tuple[float, float]:
    """Measure how well the student's map predicts the teacher's through the best linear adapter.

    A 1x1 convolution with bias is fitted by ridge regression on one set of images and scored on another, so that
    students with and without hints are measured in the same way.

    Args:
        pair: The pair.
        fit: (student maps, teacher maps by name), each ``[N, C, H, W]``, of the images to fit on.
        score: The same of the images to score on.

    Returns:
        (fraction of the teacher's variance that stays unexplained, cosine similarity between predicted and true
        vectors at each place after removing the channel means).
    """
    x, y = _rows(pair, fit)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    gram = x.T @ x
    ridge = 1e-4 * gram.diagonal().mean().clamp_min(1e-12)
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), x.T @ (y - y_mean))
    x, y = _rows(pair, score)
    predicted, y = (x - x_mean) @ weights, y - y_mean
    unexplained = (predicted - y).square().mean() / y.square().mean().clamp_min(1e-12)
    return unexplained.item(), functional.cosine_similarity(predicted, y, dim=1).mean().item()


def _rows(pair: HintPair, maps: tuple[Sequence[Tensor], dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the two maps of a pair as float64 matrices ``[N * H * W, C]``, on their device."""
    student_map, teacher_map = _to_common_size(maps[0][pair.student_block], maps[1][pair.teacher_block])
    x, y = (one.movedim(1, -1).flatten(0, -2).double() for one in (student_map, teacher_map))
    return x, y


def probe_shapes(
    teacher: Teacher, student_features: Callable[[Tensor], Sequence[Tensor]], pixels: Tensor
) -> tuple[dict[str, tuple[int, int]], list[tuple[int, int]]]:
    """Return (channels, side length) of every hint candidate and of every student block for these images."""
    names = tuple(hint_candidates(teacher))
    with torch.no_grad(), FeatureTap(teacher, names) as tap:
        teacher(pixels)
        teacher_shapes = {name: (tap.maps[name].shape[1], tap.maps[name].shape[-1]) for name in names}
        student_shapes = [(m.shape[1], m.shape[-1]) for m in student_features(pixels)]
    return teacher_shapes, student_shapes

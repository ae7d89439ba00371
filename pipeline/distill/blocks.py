"""The rules by which a method chooses teacher blocks for hints. Imports no PyTorch.

A rule is called with every block in depth order, the number of blocks to choose (``--hint-blocks``) and the seed of the
run, and returns names in depth order.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "COMPARED_BLOCKS",
    "BlockRule",
    "TeacherBlock",
    "every_block",
    "highest",
    "highest_variance",
    "last_blocks",
    "random_blocks",
    "stage_ends",
]

# The number of blocks, of the highest variance, at which the features of every student are compared with the teacher's.
COMPARED_BLOCKS = 3


class TeacherBlock(NamedTuple):
    """Properties of a teacher block for a rule.

    Attributes:
        variance: Activation variance of its map.
        side: Side length of its map in pixels.
    """

    variance: float
    side: int


Blocks = Mapping[str, TeacherBlock]
BlockRule = Callable[[Blocks, int, int], tuple[str, ...]]


def highest(values: Mapping[str, float], count: int) -> tuple[str, ...]:
    """Return the names of the ``count`` highest values, in the order of the mapping."""
    return _in_depth_order(values, sorted(values, key=lambda name: -values[name])[:count])


def highest_variance(blocks: Blocks, count: int, seed: int = 0) -> tuple[str, ...]:
    """Return the ``count`` blocks with the highest activation variance."""
    return highest({name: block.variance for name, block in blocks.items()}, count)


def random_blocks(blocks: Blocks, count: int, seed: int) -> tuple[str, ...]:
    """Return ``count`` random blocks; another seed draws other blocks."""
    # `Random.random` returns the same numbers in every Python version, `Random.sample` need not.
    draw = random.Random(seed).random
    return _in_depth_order(blocks, sorted(blocks, key=lambda _: draw())[:count])


def last_blocks(blocks: Blocks, count: int, seed: int = 0) -> tuple[str, ...]:
    """Return the ``count`` deepest blocks."""
    return tuple(blocks)[-count:]


def every_block(blocks: Blocks, count: int, seed: int = 0) -> tuple[str, ...]:
    """Return all blocks, whatever ``count`` is."""
    return tuple(blocks)


def stage_ends(blocks: Blocks, count: int = 0, seed: int = 0) -> tuple[str, ...]:
    """Return the last block of each stage, whatever ``count`` is.

    A stage ends where the name before its last dot changes, or the side of the map does.

    >>> sides = {"layer1.0": 8, "layer1.1": 8, "layer2.0": 4, "layer2.1": 4}
    >>> stage_ends({name: TeacherBlock(1.0, side) for name, side in sides.items()})
    ('layer1.1', 'layer2.1')
    """
    last = {(name.rpartition(".")[0], block.side): name for name, block in blocks.items()}
    return tuple(last.values())


def _in_depth_order(blocks: Mapping[str, object], chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in blocks if name in chosen)

"""The rules by which a method chooses the teacher blocks that it hints at. Imports no PyTorch.

A rule is called with the activation variance of every block in depth order, the number of blocks to choose
(``--hint-layers``) and the seed of the run, and returns names in depth order.
"""

import random
from collections.abc import Callable, Mapping, Sequence

__all__ = ["BlockRule", "every_block", "highest_variance", "last_blocks", "random_blocks", "stage_ends"]

BlockRule = Callable[[Mapping[str, float], int, int], tuple[str, ...]]


def highest_variance(variances: Mapping[str, float], count: int, seed: int = 0) -> tuple[str, ...]:
    """Return the ``count`` blocks with the highest values."""
    ranked = sorted(variances, key=lambda name: -variances[name])[:count]
    return _in_depth_order(variances, ranked)


def random_blocks(variances: Mapping[str, float], count: int, seed: int) -> tuple[str, ...]:
    """Return ``count`` blocks drawn by the seed, so that a study over seeds tries several draws."""
    # `Random.random` gives the same numbers in every Python version, `Random.sample` promises nothing.
    draw = random.Random(seed).random
    return _in_depth_order(variances, sorted(variances, key=lambda _: draw())[:count])


def last_blocks(variances: Mapping[str, float], count: int, seed: int = 0) -> tuple[str, ...]:
    """Return the ``count`` deepest blocks."""
    return tuple(variances)[-count:]


def every_block(variances: Mapping[str, float], count: int, seed: int = 0) -> tuple[str, ...]:
    """Return all blocks, whatever ``count`` is."""
    return tuple(variances)


def stage_ends(variances: Mapping[str, float], count: int = 0, seed: int = 0) -> tuple[str, ...]:
    """Return the last block of each stage: of each prefix before the last dot, or every name if there is none.

    >>> stage_ends(dict.fromkeys(["layer1.0", "layer1.1", "layer2.0", "layer2.1"], 1.0))
    ('layer1.1', 'layer2.1')
    """
    last = {name.rpartition(".")[0]: name for name in variances}
    return tuple(last.values())


def _in_depth_order(variances: Mapping[str, float], chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in variances if name in chosen)

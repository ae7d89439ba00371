"""The method ``dynamic``: the blocks to hint at are chosen again while training.

The teacher is frozen, so its activation variances stay; what changes is how much of them the student has learnt. The
first blocks are those of the highest variance, as for ``selective``. Then, every ``--rechoose-epochs`` epochs, the
blocks are taken of which the student leaves the largest share of the variance unexplained: the share that the best
linear adapter, fitted on training images, leaves on validation images
(`kdedge.pipeline.distill.hints.measure_similarity`). Every block has an adapter from the start, to a student block that
stays the same: that with which ``all`` pairs it, which can be another than that of ``selective``. A block that is
chosen, left out and chosen again goes on with the weights that its adapter had.
"""

from collections.abc import Callable
from typing import Any

from kdedge.pipeline.distill.blocks import highest
from kdedge.pipeline.distill.hints import HintAdapters
from kdedge.progress import log

__all__ = ["DynamicChoice"]


class DynamicChoice:
    """Chooses which adapters are trained, and remembers every choice.

    Args:
        adapters: Adapters of all candidates, of which the first choice is trained.
        count: Blocks to choose.
        every: Epochs between two choices.
        epochs: Epochs of the whole training; after the last there is nothing to choose for.
    """

    def __init__(self, adapters: HintAdapters, count: int, *, every: int, epochs: int) -> None:
        self._adapters, self._count, self._every, self._epochs = adapters, count, every, epochs
        self.history: list[dict[str, Any]] = [{"epoch": 0, "chosen": list(adapters.chosen)}]

    def update(self, epoch: int, unexplained: Callable[[], dict[str, float]]) -> None:
        """Choose again if it is time.

        Args:
            epoch: Number of the epoch that was just trained, from 0.
            unexplained: Measures the share of the variance of each block that the student leaves unexplained.
        """
        done = epoch + 1
        if done % self._every or done == self._epochs:
            return
        shares = unexplained()
        chosen = highest(shares, self._count)
        if chosen != self._adapters.chosen:
            log(f"hints from epoch {done + 1} on: {', '.join(chosen)}")
        self._adapters.choose(chosen)
        self.history.append({"epoch": done, "chosen": list(chosen), "unexplained": shares})

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.history = state["history"]
        self._adapters.choose(tuple(self.history[-1]["chosen"]))

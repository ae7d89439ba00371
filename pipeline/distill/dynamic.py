"""The method ``dynamic``: the blocks to hint at are chosen again while training.

The first blocks have the highest activation variance, as for ``selective``. Then, every ``--rechoose-epochs`` epochs,
the method chooses the blocks with the largest unexplained share of the variance: the share that the best linear
adapter, fitted on training images, leaves on validation images (`kdedge.pipeline.distill.hints.measure_similarity`).
Every block has an adapter from the start, to the student block with which ``all`` pairs it; ``selective`` can pair it
with another one. A block that is chosen again continues with the earlier weights of its adapter.
"""

from collections.abc import Callable
from typing import Any

from kdedge.pipeline.distill.blocks import highest
from kdedge.pipeline.distill.hints import HintAdapters
from kdedge.progress import log

__all__ = ["DynamicChoice"]


class DynamicChoice:
    """Chooses the trained adapters, and records every choice.

    Args:
        adapters: Adapters of all candidates, with the first choice.
        count: Blocks to choose.
        every: Epochs between two choices.
        epochs: Epochs of the training; there is no choice after the last one.
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
        """Return the state for a checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.history = state["history"]
        self._adapters.choose(tuple(self.history[-1]["chosen"]))

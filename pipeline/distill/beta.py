"""Adaptive beta: the weight of the hint term is halved when the validation KD loss stops improving, and may end at 0.

The halving is that of the method's source. There hints go on to the end of the training, also where the student has
passed its teacher; from a teacher of 39.5 % that cost a student 5.5 to 21.5 pp (benchmarks/LOG.md, section 38).
"""

from typing import Any

__all__ = ["BETA_UNIT", "BetaSchedule"]

# Normalised hints count beta in it: at this beta their term starts as large as the cross-entropy.
BETA_UNIT = 250.0


class BetaSchedule:
    """Halves beta after ``patience`` epochs without a better validation KD loss.

    Args:
        start: Initial beta.
        patience: Epochs without improvement before beta is halved.
        warmup_epochs: Epochs at the start that do not count.
        adaptive: False keeps beta at its start.
        drop: Whether beta becomes 0 for good as soon as the student has passed the teacher.
    """

    def __init__(self, start: float, *, patience: int, warmup_epochs: int, adaptive: bool, drop: bool) -> None:
        self.beta = start
        self._patience = patience
        self._warmup_epochs = warmup_epochs
        self._adaptive = adaptive
        self._drop = drop
        self._best = float("inf")
        self._stale_epochs = 0

    def update(self, epoch: int, val_kd: float, *, passed: bool) -> None:
        """Take note of the student after epoch number ``epoch`` (from 0).

        Args:
            epoch: The epoch.
            val_kd: Validation KD loss.
            passed: Whether the student answers more validation images right than its teacher.
        """
        if not self._adaptive or epoch < self._warmup_epochs:
            return
        if self._drop and passed:
            self.beta = 0.0
            return
        if val_kd < self._best:
            self._best, self._stale_epochs = val_kd, 0
            return
        self._stale_epochs += 1
        if self._stale_epochs == self._patience:
            self.beta, self._stale_epochs = self.beta / 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"beta": self.beta, "best": self._best, "stale_epochs": self._stale_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.beta, self._best, self._stale_epochs = state["beta"], state["best"], state["stale_epochs"]

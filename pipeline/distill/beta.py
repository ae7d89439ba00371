"""The weights of a teacher's terms: beta of the hint term, and the end of the KD term.

Beta is halved when the validation KD loss stops improving, as in the method's source. In the source, hints and KD last
to the end of the training. They harm a student that becomes better than its teacher: by up to 14 pp (hints) and 2 pp
(KD; experiments/LOG.md, sections 38 and 51). So there are no hints of a weak teacher, and both terms end once the
student is better.
"""

from typing import Any

__all__ = ["BETA_UNIT", "BetaSchedule", "KdSchedule", "hint_share", "kd_share", "skill"]

# The unit of beta for normalised hints: at this beta their term starts as large as the cross-entropy.
BETA_UNIT = 250.0


_NO_HINTS_BELOW, _FULL_HINTS_FROM = 0.7, 0.9  # see `skill`
_NO_KD_BELOW, _FULL_KD_FROM = 0.3, 0.7
_CLEARLY = 0.8  # share of the teacher's validation errors below which the student is clearly better


def skill(teacher_top1_pct: float, majority_pct: float) -> float:
    """Return the skill of a teacher: at most 0 if it is no better than the largest class, 1 without errors.

    Args:
        teacher_top1_pct: Its validation accuracy in percent.
        majority_pct: Share of the largest class in the validation images, in percent.
    """
    return (teacher_top1_pct - majority_pct) / max(100 - majority_pct, 1e-9)


def hint_share(skill: float) -> float:
    """Return the share of beta, 0..1, that hints of a teacher of this skill get: all from 0.9, none below 0.7."""
    return min(1.0, max(0.0, (skill - _NO_HINTS_BELOW) / (_FULL_HINTS_FROM - _NO_HINTS_BELOW)))


def kd_share(skill: float) -> float:
    """Return the share of alpha, 0..1, that the logits of a teacher of this skill get: all from 0.7, none below 0.3.

    A teacher near chance has similar logits for every image, which delay learning (experiments/LOG.md, section 52).
    """
    return min(1.0, max(0.0, (skill - _NO_KD_BELOW) / (_FULL_KD_FROM - _NO_KD_BELOW)))


class KdSchedule:
    """Ends the KD term for good once the student makes clearly fewer validation errors than its teacher.

    Args:
        drop: False keeps the term to the end.

    Attributes:
        active: Whether the KD term is trained.
    """

    def __init__(self, *, drop: bool) -> None:
        self.active = True
        self._drop = drop

    def update(self, student_top1_pct: float, teacher_top1_pct: float) -> None:
        """Update with the validation accuracies after an epoch, in percent."""
        if self._drop and 100 - student_top1_pct < _CLEARLY * (100 - teacher_top1_pct):
            self.active = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.active = state["active"]


class BetaSchedule:
    """Halves beta after ``patience`` epochs without a better validation KD loss.

    Args:
        start: Initial beta.
        patience: Epochs without improvement before beta is halved.
        warmup_epochs: Epochs at the start without an update.
        adaptive: False keeps beta at its start.
        drop: Whether beta becomes 0 for good once the student is better than the teacher.
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
        """Update after epoch number ``epoch`` (from 0).

        Args:
            epoch: The epoch.
            val_kd: Validation KD loss.
            passed: Whether the student has a higher validation accuracy than its teacher.
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
        """Return the state for a checkpoint."""
        return {"beta": self.beta, "best": self._best, "stale_epochs": self._stale_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.beta, self._best, self._stale_epochs = state["beta"], state["best"], state["stale_epochs"]

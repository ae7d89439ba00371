"""Several frozen teachers as one: the mean of their logits, each from its own cache."""

from collections.abc import Sequence

from torch import Tensor

from kdedge.pipeline.distill.teacher_logits import CachedTeacher
from kdedge.pipeline.training.batches import Batch

__all__ = ["Ensemble"]


class Ensemble:
    """The mean of the logits of some teachers for the same augmented images; maps for hints come from the first.

    Args:
        members: At least one teacher. The mean of one has the bits of its own logits.
    """

    def __init__(self, members: Sequence[CachedTeacher]) -> None:
        self._members = members

    def __call__(self, batch: Batch, blocks: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and maps; see `CachedTeacher`."""
        total, maps = self._members[0](batch, blocks)
        for member in self._members[1:]:
            total = total + member(batch)[0]
        return total / len(self._members), maps

    def take_computed(self) -> int:
        """Return the number of logits computed since the last call."""
        return sum(member.take_computed() for member in self._members)

    def close(self) -> None:
        """Close the caches."""
        for member in self._members:
            member.close()

"""Several frozen teachers as one: the mean of their logits, each from its own cache, also of mirror images."""

from collections.abc import Sequence

from torch import Tensor

from kdedge.pipeline.distill.teacher_logits import CachedTeacher
from kdedge.pipeline.training.augmentations import mirrored
from kdedge.pipeline.training.batches import Batch

__all__ = ["Ensemble"]


class Ensemble:
    """The mean of the logits of some teachers for the same augmented images; maps for hints come from the first.

    Args:
        members: At least one teacher. The mean of one has the bits of its own logits.
        mirror_shift: Largest shift in pixels of the images, of whose logits and those of their mirror images the mean
            is taken; None: their own logits.
    """

    def __init__(self, members: Sequence[CachedTeacher], mirror_shift: int | None = None) -> None:
        self._members, self._mirror_shift = members, mirror_shift

    def __call__(self, batch: Batch, blocks: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and maps; see `CachedTeacher`."""
        views = [batch]
        if self._mirror_shift is not None:
            numbers = mirrored(batch.augmentations, self._mirror_shift)
            views.append(batch._replace(pixels=batch.pixels.flip(-1), augmentations=numbers))
        total, maps = self._members[0](batch, blocks)
        others = [(member, view) for view in views for member in self._members][1:]
        for member, view in others:
            total = total + member(view)[0]
        return total / (1 + len(others)), maps

    def take_computed(self) -> int:
        """Return the number of logits computed since the last call."""
        return sum(member.take_computed() for member in self._members)

    def close(self) -> None:
        """Close the caches."""
        for member in self._members:
            member.close()

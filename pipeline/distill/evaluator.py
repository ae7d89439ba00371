"""Measures a student on the validation images, and compares it with the teacher."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from kdedge.benchmarks.accuracy import balanced_pct
from kdedge.dataset import Split
from kdedge.inputs import inputs_at_once
from kdedge.pipeline.config import Config
from kdedge.pipeline.distill.hints import HintPair, measure_similarity
from kdedge.pipeline.distill.losses import kd_loss
from kdedge.pipeline.models.student import Student
from kdedge.pipeline.models.teacher import FeatureTap, Teacher
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.batches import predict_logits, to_network
from kdedge.pipeline.training.device import autocast

__all__ = ["StudentEvaluator"]

_SIMILARITY_IMAGES = 256  # to fit the adapters on, and as many to score, fewer above 64 pixels; 65,000 rows at 16 x 16


class StudentEvaluator:
    """Measures a student; the teacher runs once.

    Args:
        config: As of `kdedge.pipeline.distill.trainer.Trainer`.
        teachers: In eval mode. The student is compared with the mean of their logits, with ``--mean-of-flips`` also
            of mirror images, and the maps of the first.
        student: The attribute of this name can be replaced by another student of the same architecture.
        pairs: Pairs for the reported feature similarity, the same for every method.
        candidates: Further pairs for `unexplained`.
        train: Training images, to fit adapters.
        val: Validation images.
        device: Device of the models.

    Attributes:
        teacher_top1_pct: Validation accuracy of the teacher (the mean of the logits) in percent.
        teacher_right: Whether it predicts each validation image correctly, ``[N] bool``.
        right: Whether the student did in the last `measure`, ``[N] bool``.
    """

    right: npt.NDArray[np.bool_]

    def __init__(
        self,
        config: Config,
        teachers: Sequence[Teacher],
        student: Student,
        pairs: tuple[HintPair, ...],
        candidates: tuple[HintPair, ...] = (),
        *,
        train: Split,
        val: Split,
        device: torch.device,
    ) -> None:
        self.student, teacher = student, teachers[0]
        self._config, self._pairs, self._candidates, self._val, self._device = config, pairs, candidates, val, device
        self._labels = torch.from_numpy(val.labels)
        count = inputs_at_once(val.spec.resized(teacher.image_size), _SIMILARITY_IMAGES, 64)
        self._pixels = [
            to_network(torch.from_numpy(split.images[:: -(-len(split.labels) // count)].copy()), split.spec, device)
            for split in (train, val)
        ]
        self._teacher_maps = []
        tap = FeatureTap(teacher, tuple({pair.teacher_block: None for pair in (*pairs, *candidates)}))
        with torch.no_grad(), autocast(config.runtime):
            logits = [predict_logits(one, val, device, one.image_size) for one in teachers]
            if config.distill.mirrors_teacher:
                logits += [predict_logits(_of_mirrored(one), val, device, one.image_size) for one in teachers]
            self._teacher_logits = torch.stack(logits).mean(0)
            self.teacher_top1_pct = self._top1_pct(self._teacher_logits)
            self.teacher_right = (self._teacher_logits.argmax(1) == self._labels).numpy()
            for pixels in self._pixels:
                with tap:
                    teacher(pixels)
                    self._teacher_maps.append(dict(tap.maps))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return top-1 in percent, KD and CE loss, unexplained variance and cosine similarity of the features."""
        self.student.eval()
        with autocast(self._config.runtime):
            logits = predict_logits(self.student, self._val, self._device)
        self.right = (logits.argmax(1) == self._labels).numpy()
        return distributed.from_first(lambda: self._measured(logits))

    def _measured(self, logits: Tensor) -> dict[str, float]:
        # A teacher without blocks for hints has no pairs.
        similarities = self._similarities(self._pairs) or [(math.nan, math.nan)]
        unexplained, cosine = (sum(values) / len(values) for values in zip(*similarities, strict=True))
        balanced = {"val_balanced_pct": balanced_pct(self.right, self._val.labels)}
        return {
            "val_top1_pct": self._top1_pct(logits),
            **(balanced if self._config.training.balance != "none" else {}),
            "val_kd": kd_loss(logits, self._teacher_logits, self._config.distill.temperature).item(),
            "val_ce": functional.cross_entropy(logits, self._labels).item(),
            "val_hint": unexplained,
            "cosine_similarity": cosine,
        }

    @torch.no_grad()
    def unexplained(self) -> dict[str, float]:
        """Return the share of the variance of each candidate block that the student leaves unexplained."""
        self.student.eval()
        similarities = distributed.from_first(lambda: self._similarities(self._candidates))
        return {pair.teacher_block: share for pair, (share, _) in zip(self._candidates, similarities, strict=True)}

    def _top1_pct(self, logits: Tensor) -> float:
        """Return the validation accuracy of logits ``[N, C]`` in percent."""
        return round(100 * (logits.argmax(1) == self._labels).float().mean().item(), 4)

    def _similarities(self, pairs: Sequence[HintPair]) -> list[tuple[float, float]]:
        """Return (share unexplained, cosine similarity) of each pair."""
        with autocast(self._config.runtime):
            student_maps = [self.student.features(pixels) for pixels in self._pixels]
        fit, score = zip(student_maps, self._teacher_maps, strict=True)
        return [measure_similarity(pair, fit, score) for pair in pairs]


def _of_mirrored(teacher: Teacher) -> Callable[[Tensor], Tensor]:
    """Return a function that takes the logits of the mirror images of ``[N, C, H, W]``."""
    return lambda pixels: teacher(pixels.flip(-1))

"""The training step of a method: terms, weights and updates."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdedge.pipeline.config import Config
from kdedge.pipeline.distill.beta import BETA_UNIT, BetaSchedule, KdSchedule
from kdedge.pipeline.distill.ensemble import Ensemble
from kdedge.pipeline.distill.gradients import gradient_shares
from kdedge.pipeline.distill.hints import HintAdapters, HintPair
from kdedge.pipeline.distill.losses import kd_loss
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.distill.mixing import mix_batch
from kdedge.pipeline.distill.optimizer import build_optimizer, set_learning_rate
from kdedge.pipeline.models.student import Student
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.balance import cross_entropy
from kdedge.pipeline.training.batch_norms import refresh_batch_norms
from kdedge.pipeline.training.batches import Batch, Batches, place, top1_pct
from kdedge.pipeline.training.device import autocast
from kdedge.progress import log

__all__ = ["Trainer", "first_batches"]

_UNMIXED_BELOW = 0.1  # share of the peak learning rate, the last 8 % of a training: mixed images hide the last gain


@dataclass(frozen=True)
class _Terms:
    """The trained terms of the loss."""

    kd: bool
    hint: bool
    ce: bool


class Trainer:
    """Trains a student by one method.

    Args:
        config: Method, settings and precision.
        teacher: Returns logits and maps of a batch, from caches if possible.
        student: Changed in place.
        pairs: Possible pairs of hints; none for a method without hints.
        chosen: Teacher blocks among them with hints from the start.
        hint_share: Share of beta, see `kdedge.pipeline.distill.beta.hint_share`.
        kd_share: Share of alpha.
        batches: The training set; the first batches calibrate the hints.

    Attributes:
        adapters: The adapters of the pairs.
        beta: The schedule of beta.
        kd: The end of the KD term.
        optimizer: Optimizer of student and adapters.
        average: Moving average of the student's weights with ``--ema``, else None.
        shares: Share of each trained term in the gradient of the student's weights, in percent of the sum of norms,
            on the first batch of the epoch.
    """

    def __init__(
        self,
        config: Config,
        teacher: Ensemble,
        student: Student,
        *,
        pairs: tuple[HintPair, ...],
        chosen: tuple[str, ...],
        batches: Batches,
        hint_share: float = 1.0,
        kd_share: float = 1.0,
    ) -> None:
        settings = config.distill
        self.method = METHODS[settings.method]
        self._config, self._settings = config, settings
        self._teacher, self._student, self._batches = teacher, student, batches
        self._hint_epochs, self._kd_share = settings.hint_only_epochs, kd_share
        self.adapters = place(HintAdapters(pairs, normalised=settings.hint_loss == "normalised"), batches.device)
        self.adapters.choose(chosen)
        self.beta = BetaSchedule(
            settings.beta * hint_share,
            patience=settings.beta_patience,
            warmup_epochs=self._hint_epochs,
            adaptive=self.method.adaptive_beta,
            drop=settings.adapt_to_teacher,
        )
        self.kd = KdSchedule(drop=settings.adapt_to_teacher)
        self.kd.active = kd_share > 0
        self.optimizer = build_optimizer(settings, student, self.adapters)
        self.average = None
        if settings.ema:
            mean = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(student, multi_avg_fn=mean)
        self.shares: dict[str, float] = {}
        self._shares_epoch = -1
        self._hint_scale = distributed.from_first(self._calibrate) if pairs else 0.0
        self._losses_of_all = distributed.parallel(self._losses, student, self.adapters, unused=bool(pairs))

    @property
    def result(self) -> Student:
        """The student that is evaluated and kept: the moving average of the weights, or the trained student."""
        return self.average.module if self.average else self._student  # type: ignore[return-value]

    def hint_weight(self, beta: float) -> float:
        """Return the factor of the hint loss: beta for raw hints, else beta / `BETA_UNIT` in calibrated units."""
        if self._settings.hint_loss == "raw":
            return beta
        return self._hint_scale * beta / BETA_UNIT

    def step(self, batch: Batch, epoch: int, rate: float) -> dict[str, Tensor]:
        """Train on one batch at a share of the peak learning rate and return the named losses."""
        set_learning_rate(self.optimizer, rate * self._settings.lr)
        self._student.train()
        self.adapters.train()
        uses_hints = self.method.blocks is not None and self.beta.beta > 0
        hint_only = uses_hints and epoch < self._hint_epochs
        terms = _Terms(kd=self.method.kd and self.kd.active and not hint_only, hint=uses_hints, ce=not hint_only)
        if self._settings.mix and rate >= _UNMIXED_BELOW:
            classes, key = self._student.classifier.out_features, (self._config.runtime.seed, epoch)
            batch = mix_batch(batch, self._settings.mix, classes, key)
        losses = self._losses_of_all(self._student, self.adapters, batch, terms)
        weights = {
            "kd": self._settings.alpha * self._kd_share,
            "hint": self.hint_weight(self.beta.beta),
            "ce": self._settings.gamma if self.method.kd else 1.0,
        }
        trained = {name: weights[name] * losses[name] for name in weights if getattr(terms, name)}
        if epoch != self._shares_epoch:
            self.shares, self._shares_epoch = gradient_shares(trained, list(self._student.parameters())), epoch
        loss = torch.stack(list(trained.values())).sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self._student)
        return {"loss": loss, **losses}

    def update_reliance(self, epoch: int, row: Mapping[str, float], teacher_top1_pct: float) -> None:
        """Update beta and the KD term after an epoch, and log the end of a term."""
        student_top1_pct = row["val_top1_pct"]
        beta, kd = self.beta.beta, self.kd.active
        self.beta.update(epoch, row["val_kd"], passed=student_top1_pct > teacher_top1_pct)
        if epoch >= self._hint_epochs:
            self.kd.update(student_top1_pct, teacher_top1_pct)
        ended = ["hints"] if self.method.blocks and beta and not self.beta.beta else []
        ended += ["KD"] if self.method.kd and kd and not self.kd.active else []
        if ended:
            log(
                f"{' and '.join(ended)} ended: the student has {student_top1_pct:.2f} % on validation data, its "
                f"teacher {teacher_top1_pct:.2f} %"
            )

    def refresh_norms(self, epoch: int) -> None:
        """Recompute the result's batch-norm statistics on the first batches of an epoch, with ``--refresh-norms``.

        Averaged weights have no statistics of their own, so they always get them.
        """
        if self._settings.refresh_norms or self.average:
            part = distributed.share(self._batches.size)
            early = first_batches(self._batches, self._settings.scan_batches, epoch, part)
            with autocast(self._config.runtime):
                refresh_batch_norms(self.result, [batch.pixels for batch in early])

    def cache_rest(self, epoch: int) -> None:
        """Compute the teacher's logits of the images that an epoch left out, to complete the cache.

        Runs of other seeds show these images in the same epoch, and later epochs show them with the same augmentation.
        Each of them would make the teacher compute a whole batch.
        """
        if self.method.kd and self.kd.active and epoch >= self._hint_epochs and self._batches.numbered:
            rest = None if distributed.rank() else self._batches.rest(epoch)
            if rest:
                self._teacher(rest)

    def _losses(self, student: Student, adapters: HintAdapters, batch: Batch, terms: _Terms) -> dict[str, Tensor]:
        """Return the losses of a batch, the teacher's terms where they are trained, and its correct predictions."""
        losses, targets = {}, batch.targets
        with autocast(self._config.runtime):
            maps = student.features(batch.pixels)
            logits = student.classify(maps[-1]).float()
            if terms.hint or terms.kd:
                teacher_logits, teacher_maps = self._teacher(batch, adapters.chosen if terms.hint else ())
            if terms.kd:
                temperature, weights = self._settings.temperature, self._batches.class_weights
                losses["kd"] = kd_loss(logits, teacher_logits, temperature, targets, weights)
            if terms.hint:
                losses["hint"] = adapters(maps, teacher_maps)
        # An output that is not trained has no gradient: DistributedDataParallel would wait for it.
        predicted = logits if terms.ce else logits.detach()
        losses["ce"] = cross_entropy(predicted, targets, self._batches.class_weights)
        losses["top1_pct"] = top1_pct(logits, batch.labels)
        return losses

    @torch.no_grad()
    def _calibrate(self) -> float:
        """Set the adapters' units and return the factor that makes the first hint loss as large as the CE loss.

        The factor is 0 if there is no hint loss: the maps of both networks are constant.
        """
        early = first_batches(self._batches, self._settings.scan_batches)
        self._student.eval()
        blocks = tuple(pair.teacher_block for pair in self.adapters.pairs)
        _, teacher_maps = self._teacher(early[0], blocks)
        with autocast(self._config.runtime):
            self.adapters.calibrate(self._student.features(early[0].pixels), teacher_maps)
        student, adapters = copy.deepcopy(self._student).train(), copy.deepcopy(self.adapters).train()
        terms = _Terms(kd=False, hint=True, ce=True)
        losses = [self._losses(student, adapters, batch, terms) for batch in early]
        ce, hint = (sum(loss[name].item() for loss in losses) for name in ("ce", "hint"))
        return ce / hint if hint else 0.0


def first_batches(batches: Batches, count: int, epoch: int = 0, part: slice = slice(None)) -> list[Batch]:
    """Return the first ``count`` batches of an epoch, or a part of each."""
    return [batch for _, batch in zip(range(count), batches.epoch(epoch, part), strict=False)]

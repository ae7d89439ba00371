"""The epoch loop of every training: checkpoints, restarts, early end."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdedge.errors import DivergenceError
from kdedge.files import csv_bytes, write_atomic
from kdedge.pipeline.tracking import Tracked
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.balance import class_shares
from kdedge.pipeline.training.batches import Batch, Batches
from kdedge.pipeline.training.checkpoint import CHECKPOINT, Stateful, load_checkpoint, save_checkpoint
from kdedge.pipeline.training.schedule import WARM_UP, EarlyEnd, early_end
from kdedge.progress import Tracker, format_duration, log, track, warn

__all__ = ["EpochLoop"]

RESTARTS = 2  # of a training that learns nothing, each with a quarter of the learning rate
_FEWEST_STEPS = 100  # a shorter training need not have learned anything
_LEARNED_PCT = 99.0  # training accuracy in percent from which a training can end early


@dataclass
class _StepMeans:
    """Running means of named losses over an epoch, kept on the device until they are read."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of one step (scalars). A step may lack some of them."""
        for name, loss in losses.items():
            value = loss.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.steps[name] = self.steps.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the steps so far that had it, of all processes."""
        return {name: distributed.mean(total / self.steps[name]).item() for name, total in self.sums.items()}


class _NothingLearnedError(Exception):
    """Ends an attempt at a training."""


class _Best(NamedTuple):
    """The epoch with the best validation accuracy so far (the first of equals) and its weights."""

    accuracy_pct: float
    epoch: int
    weights: dict[str, Tensor]


@dataclass
class EpochLoop:
    """Runs epochs with a checkpoint after each, and resumes an interrupted run.

    A training that diverges, or whose first epochs learn nothing, starts again with a quarter of the learning rate. It
    ends early after a third of its epochs without a better validation accuracy than since the peak of the rate (while
    the rate rises, trained weights become worse) and, with ``adaptive``, once the model predicts 99 % of the training
    images correctly: its rate falls to zero over half as many epochs as that took. The weights of the last epoch are
    kept, unless an earlier epoch is better by more than two standard errors of either.

    Attributes:
        title: Name of the training, for the log.
        model: The trained model, a member of ``state``.
        epochs: Number of epochs.
        batches: The batches.
        val_labels: Labels of the validation images, int64 ``[V]``.
        state: Everything in the checkpoint, by name.
        step: ``step(batch, epoch, rate)`` trains on one batch and returns its named losses (scalars), including
            ``loss`` and ``ce``, and with ``adaptive`` also ``top1_pct``, the correct predictions in percent. ``rate``
            in 0..1 is the share of the peak learning rate.
        finish_epoch: ``finish_epoch(epoch)`` evaluates and returns further columns for the epoch's row, including
            ``val_top1_pct``, and in a balanced training ``val_balanced_pct``, which then decides.
        out_dir: Directory of the checkpoint and the CSV.
        csv_name: Name of the CSV with one row per epoch.
        schedule: As for `kdedge.pipeline.training.schedule.learning_rate`.
        unlabelled_epochs: Epochs at the start that do not train on labels.
        adaptive: Whether the training ends early once the training images are learned.
        tracked: Logs the row of each epoch and its images per second elsewhere.
        val_groups: Group of each validation image, str ``[V]``; None: the images are independent.
        end: Number of epochs after which the training ends, as known so far.
    """

    title: str
    model: nn.Module
    epochs: int
    batches: Batches
    val_labels: NDArray[np.int64]
    state: Mapping[str, Stateful]
    step: Callable[[Batch, int, float], dict[str, Tensor]]
    finish_epoch: Callable[[int], dict[str, float]]
    out_dir: Path
    csv_name: str
    schedule: str = "one-cycle"
    unlabelled_epochs: int = 0
    adaptive: bool = False
    tracked: Tracked = lambda values, step: None
    val_groups: NDArray[np.str_] | None = None
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.epochs
        self._restarts = 0
        self._best = _Best(-1.0, 0, {})
        self._initial: dict[str, Any] = {}

    def run(self) -> tuple[list[dict[str, float]], float]:
        """Train and return (one row per epoch, seconds spent in earlier attempts).

        Raises:
            DivergenceError: The loss is not finite or far too large at every tried rate; the last good checkpoint is
                kept.
            InputError: The checkpoint is of another training.
        """
        distributed.copy_state(self.state)
        self._initial = {name: copy.deepcopy(target.state_dict()) for name, target in self.state.items()}
        rows, earlier_s = self._resume()
        start = time.monotonic()
        while True:
            try:
                self._train(rows, earlier_s - start)
                break
            except _NothingLearnedError as error:
                self._start_again(str(error))
            except DivergenceError as error:
                if self._restarts == RESTARTS:
                    raise
                self._start_again(str(error))
            rows.clear()
        distributed.end_together()
        self._write_csv(rows)
        if rows:
            best_pct, last_pct = self._best.accuracy_pct, _accuracy_pct(rows[-1])
            if best_pct - last_pct > 200 * max(map(self._standard_error, (best_pct, last_pct))):
                log(f"{self.title}: the weights of epoch {self._best.epoch} are kept ({best_pct:.2f} %)")
                self.model.load_state_dict(self._best.weights)
        return rows, earlier_s

    def _train(self, rows: list[dict[str, float]], before_s: float) -> None:
        """Add a row per epoch until the training is complete; ``before_s`` plus the clock is the time spent."""
        steps = len(self.batches)
        self.end = self._early_end(rows).end
        with track(self.title, (self.end - len(rows)) * steps) as tracker:
            while len(rows) < (ending := self._early_end(rows)).end:
                epoch = len(rows)
                if ending.end < self.end:
                    change = f"ends after epoch {ending.end} instead of {self.end}"
                    log(f"{self.title}: {ending.reason}: the training {change}")
                    tracker.shorten((self.end - ending.end) * steps)
                    self.end = ending.end
                epoch_start = time.monotonic()
                means = self._train_epoch(epoch, ending, tracker)
                images_per_s = len(self.batches) * self.batches.size / (time.monotonic() - epoch_start)
                row = {"epoch": epoch + 1, **{f"train_{name}": value for name, value in means.items()}}
                self._check_divergence(row, epoch)
                self._check_weights(epoch)
                distributed.average_norms(*self._modules)
                row |= self.finish_epoch(epoch)
                row["seconds"] = round(time.monotonic() - epoch_start, 2)
                self._check_progress(row, epoch)
                rows.append(row)
                if _accuracy_pct(row) > self._best.accuracy_pct:
                    weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
                    self._best = _Best(_accuracy_pct(row), epoch + 1, weights)
                self._save(rows, before_s + time.monotonic())
                self.tracked(row | {"images_per_s": images_per_s}, epoch + 1)
                left_s = row["seconds"] * (self._early_end(rows).end - epoch - 1)
                left = f", {format_duration(left_s)} left" if left_s else ""
                log(f"{self.title}: epoch {epoch + 1}/{self.end} {_summary(row)}{left}")

    def _early_end(self, rows: list[dict[str, float]]) -> EarlyEnd:
        """Return the end of the training by the epochs so far."""
        best, best_pct, patience = 0, -1.0, max(10, self.epochs // 3)
        peak = math.ceil(WARM_UP * self.epochs) if self.schedule == "one-cycle" else 0
        for epoch, row in enumerate(rows, 1):
            if epoch <= peak or _accuracy_pct(row) > best_pct:
                best, best_pct = epoch, _accuracy_pct(row)
            reason = ""
            if self.adaptive and row["train_top1_pct"] >= _LEARNED_PCT:
                reason = f"{_LEARNED_PCT:.0f} % of the training data are correct after epoch {epoch}"
            elif epoch - best >= patience:
                reason = f"no better validation accuracy in {patience} epochs"
            if reason:
                return early_end(epoch, self.epochs, reason)
        return early_end(self.epochs, self.epochs)

    def _train_epoch(self, epoch: int, ending: EarlyEnd, tracker: Tracker) -> dict[str, float]:
        # Dropout draws from the generator of PyTorch, whose state is not in the checkpoint.
        key = [self.batches.seed, epoch, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        means = _StepMeans()
        peak, steps = 0.25**self._restarts, len(self.batches)
        for index, batch in enumerate(self.batches.epoch(epoch, distributed.share(self.batches.size))):
            progress = (epoch * steps + index) / (self.epochs * steps)
            losses = self.step(batch, epoch, peak * ending.rate(progress, self.epochs, self.schedule))
            means.add(losses)
            tracker.advance(1)
            # Reading a loss waits for the GPU, so only some are read; the mean over the epoch finds the others.
            if index % 20 == 0 and not math.isfinite(distributed.mean(losses["loss"]).item()):
                break
        result = means.means()
        if not all(math.isfinite(value) for value in result.values()):
            raise self._diverged(f"a loss became {next(v for v in result.values() if not math.isfinite(v))}", epoch)
        return result

    def _start_again(self, reason: str) -> None:
        self._restarts += 1
        self._best = _Best(-1.0, 0, {})
        for name, target in self.state.items():
            target.load_state_dict(copy.deepcopy(self._initial[name]))
        warn(f"{reason}; starting again with 1/{4**self._restarts} of the learning rate")

    def _check_progress(self, row: dict[str, float], epoch: int) -> None:
        """End an attempt that has learned nothing by the end of its warm-up (at least 100 steps), if a restart is left.

        Nothing is learned if the cross-entropy is that of the class frequencies and the validation accuracy is that of
        the most frequent class, within one standard error.
        """
        labelled = max(
            math.ceil(WARM_UP * (self.epochs - self.unlabelled_epochs)), -(-_FEWEST_STEPS // len(self.batches))
        )
        warm_up = self.unlabelled_epochs + labelled
        if epoch + 1 != warm_up or self._restarts == RESTARTS:
            return
        shares = class_shares(self.batches.split.labels, self.batches.balance)
        entropy = -float(np.sum(shares * np.log(np.maximum(shares, 1e-12))))
        constant_pct = 100 * float(np.mean(self.val_labels == shares.argmax()))
        if self._balanced:
            constant_pct = 100 / len(np.unique(self.val_labels))
        margin = 100 * self._standard_error(constant_pct)
        if row["train_ce"] > 0.98 * entropy and _accuracy_pct(row) <= constant_pct + margin:
            raise _NothingLearnedError(
                f"{self.title} has learned nothing after epoch {epoch + 1} "
                f"({_accuracy_pct(row):.2f} % on validation data, a constant prediction has {constant_pct:.2f} %)"
            )

    @property
    def _balanced(self) -> bool:
        """Whether the mean recall of the classes decides."""
        return self.batches.balance != "none"

    def _standard_error(self, accuracy_pct: float) -> float:
        """Return the standard error of a validation accuracy, 0..1; at least as for one wrong image.

        Images of a group may be right and wrong together, so a group counts as one image.
        """
        count: float = len(self.val_labels)
        if self._balanced:  # the mean of classes that all have this recall
            sizes = np.unique(self.val_labels, return_counts=True)[1]
            count = len(sizes) ** 2 / float(np.sum(1 / sizes))
        if self.val_groups is not None:
            alone = self.val_groups == ""
            groups = len(np.unique(self.val_groups[~alone])) + int(alone.sum())
            count = max(2.0, count * groups / len(self.val_labels))
        share = min(accuracy_pct / 100, 1 - 1 / count)
        return math.sqrt(share * (1 - share) / count)

    def _check_divergence(self, row: dict[str, float], epoch: int) -> None:
        """Refuse an epoch whose mean cross-entropy is ten times that of guessing, ln(number of classes)."""
        guessing = math.log(int(self.batches.split.labels.max()) + 1)
        if row["train_ce"] > 10 * guessing:
            raise self._diverged(f"the cross-entropy is {row['train_ce']:.1f}; guessing has {guessing:.1f}", epoch)

    def _check_weights(self, epoch: int) -> None:
        """Refuse weights that are not finite: no loss of the epoch depends on its last step."""
        if not all(torch.isfinite(value).all() for module in self._modules for value in module.parameters()):
            raise self._diverged("a weight is not finite", epoch)

    @property
    def _modules(self) -> list[nn.Module]:
        return [target for target in self.state.values() if isinstance(target, nn.Module)]

    def _diverged(self, what: str, epoch: int) -> DivergenceError:
        kept = f"the state after epoch {epoch} is kept" if epoch else "no epoch was complete"
        return DivergenceError(
            f"{self.title} diverged in epoch {epoch + 1}: {what} ({kept})",
            "lower --lr or --teacher-lr; a changed option starts the stage over",
        )

    def _resume(self) -> tuple[list[dict[str, float]], float]:
        saved = distributed.from_first(lambda: load_checkpoint(self.out_dir / CHECKPOINT, self.state, self.title))
        if saved is None:
            return [], 0.0
        distributed.copy_state(self.state)
        self._restarts, self._best = saved["restarts"], _Best(*saved["best"])
        rows: list[dict[str, float]] = saved["rows"]
        log(f"{self.title}: resumed after epoch {len(rows)} ({format_duration(saved['seconds'])} of work kept)")
        return rows, saved["seconds"]

    def _save(self, rows: list[dict[str, float]], seconds: float) -> None:
        if distributed.rank():
            return
        progress = {"rows": rows, "seconds": seconds, "restarts": self._restarts, "best": tuple(self._best)}
        save_checkpoint(self.out_dir / CHECKPOINT, self.state, progress)
        self._write_csv(rows)

    def _write_csv(self, rows: list[dict[str, float]]) -> None:
        # Hint-only epochs have fewer terms than later ones.
        columns = max(rows, key=len, default={})
        shown = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        write_atomic(self.out_dir / self.csv_name, csv_bytes(list(columns), shown))


def _accuracy_pct(row: Mapping[str, float]) -> float:
    """Return the validation accuracy that decides, in percent."""
    return row.get("val_balanced_pct", row["val_top1_pct"])


def _summary(row: Mapping[str, float]) -> str:
    shown = [f"loss {row['train_loss']:.3f}", f"val top-1 {row['val_top1_pct']:.2f} %"]
    if "val_balanced_pct" in row:
        shown.append(f"mean per class {row['val_balanced_pct']:.2f} %")
    return ", ".join([*shown, format_duration(row["seconds"])])

"""What every training stage shares: batches, the learning rate, the epoch loop with its checkpoints.

Nothing random has a state: the order of an epoch derives from (seed, epoch), what
`kdedge.pipeline.training.augmentations` does to an image from (epoch, place in the data set). A checkpoint after every
epoch therefore needs weights, optimizer and epoch alone to go on to the same bits.
"""

import copy
import csv
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdedge.dataset import Split
from kdedge.errors import DivergenceError, InputError
from kdedge.files import write_atomic
from kdedge.machine import images_at_once
from kdedge.pipeline.models.weights import DAMAGED
from kdedge.pipeline.training.augmentations import choose_views, views
from kdedge.progress import Tracker, format_duration, log, track, warn

__all__ = [
    "Batch",
    "Batches",
    "EpochLoop",
    "StepMeans",
    "learning_rate",
    "place",
    "predict_logits",
    "refresh_batch_norms",
    "to_pixels",
    "top1_pct",
]

CHECKPOINT = ".checkpoint.pt"  # a working file: it goes when the whole stage is complete
# Raised whenever the same options train on other batches: a checkpoint of another version cannot go on.
CHECKPOINT_VERSION = 4
_FEWEST_STEPS = 100  # after which a training must have learned something
RESTARTS = 2  # how often a training that learns nothing starts again, each time at a quarter of the rate
_WARM_UP = 0.2  # share of a training in which the one-cycle schedule rises
# Training images that are right, in percent of an epoch, from which on there is little left to learn from them.
_LEARNED_PCT = 99.0
_DIGEST_BYTES = 32  # the SHA-256 of a checkpoint is at its end

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Stateful(Protocol):
    """Anything with a state that a checkpoint must hold."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore the state."""


def place(module: ModuleT, device: torch.device) -> ModuleT:
    """Move a module to a device, its convolution weights channels last (the faster layout, see experiments/LOG.md)."""
    return module.to(device).to(memory_format=torch.channels_last)


def to_pixels(images: Tensor, device: torch.device) -> Tensor:
    """Turn uint8 ``[N, S, S, 3]`` into float32 ``[N, 3, S, S]`` in 0..1, channels last in memory."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


class Batch(NamedTuple):
    """A batch as it is trained on.

    Attributes:
        pixels: float32 ``[B, 3, S, S]`` in 0..1.
        labels: int64 ``[B]``.
        views: int64 ``[B]``, which view of which image each row is: place in the data set * views per image + view.
    """

    pixels: Tensor
    labels: Tensor
    views: NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches of a training set.

    Attributes:
        split: The training images and labels.
        batch_size: Images per batch; the ragged rest of an epoch is left out (the order changes every epoch).
        seed: Seed of the run.
        shift: Largest random shift in pixels.
        device: Where the batches go.
        flip: Whether half of the images are flipped.
    """

    split: Split
    batch_size: int
    seed: int
    shift: int
    device: torch.device
    flip: bool = True

    @property
    def size(self) -> int:
        """Images per batch: ``batch_size``, or the whole set if it is smaller."""
        return min(self.batch_size, len(self.split.labels))

    @property
    def views_per_image(self) -> int:
        """How many views of an image there are: two flips of every shift."""
        return 2 * (2 * self.shift + 1) ** 2

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.split.labels) // self.size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        images, labels = torch.from_numpy(self.split.images), torch.from_numpy(self.split.labels)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(labels))
        for start in range(0, len(self) * self.size, self.size):
            indices = order[start : start + self.size]
            places = self.split.dataset_indices[indices]
            chosen = choose_views(places, epoch=epoch, shift=self.shift, flip=self.flip)
            taken = images[indices]
            if self.device.type == "cuda":
                taken = taken.pin_memory().to(self.device, non_blocking=True)  # pinned: the copy waits for nothing
            pixels = to_pixels(views(taken, chosen, shift=self.shift), self.device)
            yield Batch(pixels, labels[indices].to(self.device), places * self.views_per_image + chosen)


def learning_rate(progress: float, peak: float, schedule: str) -> float:
    """Return the learning rate at ``progress`` in 0..1.

    ``one-cycle`` rises linearly from peak/20 over the first fifth and falls linearly to 0 (after Smith & Topin,
    arXiv:1708.07120); ``constant`` stays at the peak.
    """
    if schedule == "constant":
        return peak
    if progress < _WARM_UP:
        return peak * (0.05 + 0.95 * progress / _WARM_UP)
    return peak * (1 - progress) / (1 - _WARM_UP)


def top1_pct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the correct predictions of a batch in percent, a scalar."""
    return 100 * (logits.argmax(1) == labels).float().mean()


@torch.no_grad()
def predict_logits(model: Callable[[Tensor], Tensor], images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return float32 logits ``[N, C]`` on the CPU for uint8 images ``[N, S, S, 3]``; the model must be in eval mode."""
    parts = torch.split(torch.from_numpy(images), images_at_once(images.shape[1], 250, 64))
    return torch.cat([model(to_pixels(part, device)).float().cpu() for part in parts])


@torch.no_grad()
def refresh_batch_norms(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of all batch norms by their means over some batches, with the weights as they are.

    At a high learning rate the running means lag behind the weights: a student that answered 46.5 % of the validation
    images with them answered 80 % with these (experiments/LOG.md, section 18; Y. Wu and J. Johnson, "Rethinking 'Batch'
    in BatchNorm", arXiv:2105.07576, section 3).

    Args:
        module: Is in training mode afterwards.
        batches: Training images as the module takes them, float32 ``[N, 3, S, S]``; at least one batch.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    module.train()
    for pixels in batches:
        module(pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@dataclass
class StepMeans:
    """Running means of named losses over an epoch, kept on the device until they are asked for."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of one step (scalars)."""
        for name, loss in losses.items():
            value = loss.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the steps so far."""
        return {name: (total / self.steps).item() for name, total in self.sums.items()}


class _NothingLearnedError(Exception):
    """Ends an attempt at a training."""


class _Best(NamedTuple):
    """The epoch with the best validation accuracy so far (the first of equals) and its weights."""

    top1_pct: float
    epoch: int
    weights: dict[str, Tensor]


class _Fall(NamedTuple):
    """Epochs after which the rate falls to zero early, and after which the training ends."""

    start: int
    end: int


@dataclass
class EpochLoop:
    """Runs epochs with a checkpoint after each; resumes where an interrupted run stopped.

    A training that diverges, or whose first epochs learn nothing, starts again at a quarter of the learning rate. It
    ends early when a third of its epochs have brought no better validation accuracy. With ``adaptive`` its rate also
    falls to zero early, over half as many epochs as it took, once the model predicts 99 % of the training images
    correctly. The weights of its last epoch are kept, unless those of an earlier one are better by more than two
    standard errors.

    Attributes:
        title: What is trained, for the progress bar.
        model: What is trained, a member of ``state``.
        epochs: How many epochs.
        batches: Where the batches come from.
        val_labels: Labels of the validation images, int64 ``[V]``.
        state: Everything that a checkpoint holds, by name.
        step: ``step(batch, epoch, rate)`` trains on one batch and returns its named losses (scalars); ``loss`` and
            ``ce`` must be among them, with ``adaptive`` also ``top1_pct``, the correct predictions in percent.
            ``rate`` in 0..1 is the share of the peak learning rate.
        finish_epoch: ``finish_epoch(epoch)`` evaluates and returns more columns for the epoch's row, among them
            ``val_top1_pct``.
        out_dir: Where the checkpoint and the CSV go.
        csv_name: Name of the CSV with one row per epoch.
        schedule: As for `learning_rate`.
        unlabelled_epochs: Epochs at the start that do not train on labels.
        adaptive: Whether the training is shorter where the training images are learned early.
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

    def __post_init__(self) -> None:
        self._restarts = 0
        self._best = _Best(-1.0, 0, {})
        self._initial: dict[str, Any] = {}

    def run(self) -> tuple[list[dict[str, float]], float]:
        """Train and return (one row per epoch, seconds that earlier attempts spent).

        Raises:
            DivergenceError: The loss is not finite or far too large at every rate that was tried; the last good
                checkpoint is kept.
            InputError: The checkpoint is of another training.
        """
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
        self._write_csv(rows)
        if rows and self._best.top1_pct - rows[-1]["val_top1_pct"] > 200 * self._standard_error(self._best.top1_pct):
            log(f"{self.title}: the weights of epoch {self._best.epoch} are kept ({self._best.top1_pct:.2f} %)")
            self.model.load_state_dict(self._best.weights)
        return rows, earlier_s

    def _train(self, rows: list[dict[str, float]], before_s: float) -> None:
        """Add a row per epoch until the training is complete; ``before_s`` plus the clock is the time spent."""
        steps = len(self.batches)
        end = self._fall(rows).end
        with track(self.title, (end - len(rows)) * steps) as tracker:
            patience = max(10, self.epochs // 3)
            while len(rows) < (fall := self._fall(rows)).end:
                epoch = len(rows)
                if fall.end < end:
                    log(
                        f"{self.title}: {_LEARNED_PCT:.0f} % of the training images are correct after epoch "
                        f"{fall.start}; the training ends after epoch {fall.end} instead of {end}"
                    )
                    tracker.shorten((end - fall.end) * steps)
                    end = fall.end
                # Before the epoch, so that a training that was interrupted right after its last one ends there, too.
                if epoch - self._best.epoch >= patience:
                    log(f"{self.title}: no better validation accuracy in {patience} epochs, ended early")
                    break
                epoch_start = time.monotonic()
                means = self._train_epoch(epoch, fall, tracker)
                row = {"epoch": epoch + 1, **{f"train_{name}": value for name, value in means.items()}}
                self._check_divergence(row, epoch)
                self._check_weights(epoch)
                row |= self.finish_epoch(epoch)
                row["seconds"] = round(time.monotonic() - epoch_start, 2)
                self._check_progress(row, epoch)
                rows.append(row)
                if row["val_top1_pct"] > self._best.top1_pct:
                    weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
                    self._best = _Best(row["val_top1_pct"], epoch + 1, weights)
                self._save(rows, before_s + time.monotonic())
                left_s = row["seconds"] * (self._fall(rows).end - epoch - 1)
                left = f", {format_duration(left_s)} left" if left_s else ""
                log(f"{self.title}: epoch {epoch + 1}/{end} {_summary(row)}{left}")

    def _fall(self, rows: list[dict[str, float]]) -> _Fall:
        """Return when the rate falls early, by the epochs so far."""
        learned = [row["epoch"] for row in rows if self.adaptive and row["train_top1_pct"] >= _LEARNED_PCT]
        start = int(min(learned, default=self.epochs))
        end = start + math.ceil(start / 2)
        return _Fall(start, end) if end < self.epochs else _Fall(self.epochs, self.epochs)

    def _train_epoch(self, epoch: int, fall: _Fall, tracker: Tracker) -> dict[str, float]:
        # Dropout draws from the generator of PyTorch, whose state no checkpoint holds.
        torch.manual_seed(int(np.random.SeedSequence([self.batches.seed, epoch]).generate_state(1)[0]))
        means = StepMeans()
        peak, steps = 0.25**self._restarts, len(self.batches)
        start, end = fall.start / self.epochs, fall.end / self.epochs
        for index, batch in enumerate(self.batches.epoch(epoch)):
            progress = (epoch * steps + index) / (self.epochs * steps)
            rate = learning_rate(min(progress, start), peak, self.schedule)
            if progress > start:
                rate *= (end - progress) / (end - start)
            losses = self.step(batch, epoch, rate)
            means.add(losses)
            tracker.advance(1)
            # Reading a loss waits for the GPU, so it is done now and then; the epoch's mean catches the rest.
            if index % 20 == 0 and not math.isfinite(losses["loss"].item()):
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
        """End an attempt that has learned nothing by the end of its warm-up (at least 100 steps), if one is left.

        Nothing means: the cross-entropy is that of the class frequencies, and no more validation images are right than
        the most frequent class has, within one standard error.
        """
        labelled = max(
            math.ceil(_WARM_UP * (self.epochs - self.unlabelled_epochs)), -(-_FEWEST_STEPS // len(self.batches))
        )
        warm_up = self.unlabelled_epochs + labelled
        if epoch + 1 != warm_up or self._restarts == RESTARTS:
            return
        shares = np.bincount(self.batches.split.labels) / len(self.batches.split)
        entropy = -float(np.sum(shares * np.log(np.maximum(shares, 1e-12))))
        majority_pct = 100 * float(np.mean(self.val_labels == shares.argmax()))
        margin = 100 * self._standard_error(majority_pct)
        if row["train_ce"] > 0.98 * entropy and row["val_top1_pct"] <= majority_pct + margin:
            raise _NothingLearnedError(
                f"{self.title} has learned nothing after epoch {epoch + 1} "
                f"({row['val_top1_pct']:.2f} % on validation images, the largest class has {majority_pct:.2f} %)"
            )

    def _standard_error(self, top1_pct: float) -> float:
        """Return the standard error of a validation accuracy, 0..1; at least that of one wrong image."""
        count = len(self.val_labels)
        share = min(top1_pct / 100, 1 - 1 / count)
        return math.sqrt(share * (1 - share) / count)

    def _check_divergence(self, row: dict[str, float], epoch: int) -> None:
        """Refuse an epoch whose mean cross-entropy is ten times that of guessing, ln(number of classes)."""
        guessing = math.log(int(self.batches.split.labels.max()) + 1)
        if row["train_ce"] > 10 * guessing:
            raise self._diverged(f"the cross-entropy is {row['train_ce']:.1f}; guessing has {guessing:.1f}", epoch)

    def _check_weights(self, epoch: int) -> None:
        """Refuse weights that the last step of an epoch, which no loss tells of, has spoilt."""
        modules = [target for target in self.state.values() if isinstance(target, nn.Module)]
        if not all(torch.isfinite(value).all() for module in modules for value in module.parameters()):
            raise self._diverged("a weight is not finite", epoch)

    def _diverged(self, what: str, epoch: int) -> DivergenceError:
        kept = f"the state after epoch {epoch} is kept" if epoch else "no epoch was complete"
        return DivergenceError(
            f"{self.title} diverged in epoch {epoch + 1}: {what} ({kept})",
            "lower --lr or --teacher-lr; a changed option starts the stage over",
        )

    def _resume(self) -> tuple[list[dict[str, float]], float]:
        path = self.out_dir / CHECKPOINT
        if not path.exists():
            return [], 0.0
        data = path.read_bytes()
        content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            warn(f"{self.title}: the checkpoint {path} is damaged or of an older version: training starts over")
            return [], 0.0
        try:
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if saved["version"] != CHECKPOINT_VERSION:
                warn(f"{self.title}: the checkpoint {path} is of another version of kdedge: training starts over")
                return [], 0.0
            for name, target in self.state.items():
                target.load_state_dict(saved["state"][name])
            self._restarts, self._best = saved["restarts"], _Best(*saved["best"])
        except DAMAGED as error:
            raise InputError(
                f"the checkpoint {path} does not fit this training: {error}",
                f"delete it to start the stage over: rm {path}",
            ) from error
        rows: list[dict[str, float]] = saved["rows"]
        log(f"{self.title}: resumed after epoch {len(rows)} ({format_duration(saved['seconds'])} of work kept)")
        return rows, saved["seconds"]

    def _save(self, rows: list[dict[str, float]], seconds: float) -> None:
        state = {name: target.state_dict() for name, target in self.state.items()}
        # By way of memory: on a full disk torch.save raises a RuntimeError about its own zip writer.
        buffer = io.BytesIO()
        saved = {"version": CHECKPOINT_VERSION, "rows": rows, "seconds": seconds, "state": state}
        saved |= {"restarts": self._restarts, "best": tuple(self._best)}
        torch.save(saved, buffer)
        content = buffer.getvalue()
        write_atomic(self.out_dir / CHECKPOINT, content + hashlib.sha256(content).digest())
        self._write_csv(rows)

    def _write_csv(self, rows: list[dict[str, float]]) -> None:
        text = io.StringIO()
        # Hint-only epochs lack terms that later ones have.
        columns = max(rows, key=len, default={})
        if columns:
            writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        write_atomic(self.out_dir / self.csv_name, text.getvalue().encode())


def _summary(row: Mapping[str, float]) -> str:
    shown = [f"{k.removeprefix('train_')} {row[k]:.3f}" for k in ("train_loss",) if k in row]
    if "val_top1_pct" in row:
        shown.append(f"val top-1 {row['val_top1_pct']:.2f} %")
    return ", ".join([*shown, format_duration(row["seconds"])])

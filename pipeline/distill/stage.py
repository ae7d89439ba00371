"""The distillation stage: train the student on alpha * KD + beta * hint + gamma * CE.

Reads the training images (not the test images) and the teacher; writes ``student.safetensors``, ``student.json``
(what is needed to build it again) and ``training_log_<method>.csv`` (one row per epoch).

    kdedge distill --out artifacts/run --method selective --distill-epochs 20

The methods are cumulative: ``ce`` learns from labels alone; ``kd`` adds the teacher's logits; ``static`` adds hints at
the ends of the teacher's stages with a constant beta, after hint-only epochs; ``adaptive`` lets beta adapt;
``selective`` takes the blocks of the highest activation variance instead of the stage ends.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.artifacts import load_json, write_json
from pipeline.config import Config, DistillConfig
from pipeline.data import Split, open_dataset, split_train_val
from pipeline.distill.beta import BetaSchedule
from pipeline.distill.hints import (
    HintAdapters,
    HintPair,
    choose_blocks,
    measure_similarity,
    pair_blocks,
    probe_shapes,
    scan_variance,
    stage_ends,
)
from pipeline.distill.losses import kd_loss
from pipeline.distill.optimizer import build_optimizer, set_learning_rate
from pipeline.errors import InputError
from pipeline.models.initial import initialise
from pipeline.models.student import Student, build_student
from pipeline.models.teacher import FeatureTap, Teacher, fold_batch_norms
from pipeline.runtime import autocast, prepare
from pipeline.teacher import load_teacher
from pipeline.training import Batches, EpochLoop, learning_rate, place, predict_logits, to_pixels
from pipeline.weights import load_module, save_module

__all__ = ["load_student", "run"]

WEIGHTS = "student.safetensors"
DESCRIPTION = "student.json"
_SIMILARITY_IMAGES = 256  # to fit the adapters on, and as many to score; 65,000 rows at 16 x 16


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Train the student; see `pipeline.artifacts.StageSpec`.

    Raises:
        InputError: Bad data, or a teacher of other classes.
        StageError: The loss diverges.
    """
    settings = config.distill
    device = prepare(config.runtime)
    dataset = open_dataset(config.data, config.runtime.seed)
    classes = dataset.class_names
    student = build_student(settings.student, len(classes), dataset.image_size)
    teacher = load_teacher(inputs["teacher"])
    _check_classes(inputs["teacher"], len(classes))
    train, val = split_train_val(dataset.train(), config.data.val_fraction, config.runtime.seed, config.data.train_size)
    if settings.init == "whitening":
        initialise(student, train.images)
    place(student, device)
    teacher = fold_batch_norms(place(teacher, device), dataset.image_size).requires_grad_(False)
    batches = Batches(train, settings.batch_size, config.runtime.seed, settings.shift, device)

    variances = _scan(config, teacher, batches)
    if not variances and settings.method not in ("ce", "kd"):
        raise InputError(
            f"hints need a ResNet or a teacher with a .features stack, and {config.teacher.arch} is neither",
            "use --method kd, or another --teacher",
        )
    selective = _pairs(choose_blocks(variances, settings.hint_layers), teacher, student, train, device)
    pairs = selective
    if settings.method in ("static", "adaptive"):
        pairs = _pairs(stage_ends(list(variances)), teacher, student, train, device)
    trainer = _Trainer(config, teacher, student, pairs, batches)
    judge = _Judge(config, teacher, student, selective, train=train, val=val, device=device)

    def finish_epoch(epoch: int) -> dict[str, float]:
        row = {"lr": trainer.optimizer.param_groups[0]["lr"], "beta": trainer.beta.beta, **judge.measure()}
        trainer.beta.update(epoch, row["val_kd"])
        return row

    loop = EpochLoop(
        title=f"distill ({settings.method})",
        epochs=settings.epochs,
        batches=batches,
        state={
            "student": student,
            "adapters": trainer.adapters,
            "optimizer": trainer.optimizer,
            "beta": trainer.beta,
        },
        step=trainer.step,
        finish_epoch=finish_epoch,
        out_dir=out_dir,
        csv_name=f"training_log_{settings.method}.csv",
    )
    rows, earlier_s = loop.run()
    save_module(student, out_dir / WEIGHTS)
    description = {"arch": settings.student, "image_size": dataset.image_size, "classes": list(classes)}
    write_json(out_dir / DESCRIPTION, description)
    judge.student = place(load_student(out_dir), device)
    return {
        **description,
        "params": sum(parameter.numel() for parameter in student.parameters()),
        "method": settings.method,
        "epochs": len(rows),
        "train_images": len(train.labels),
        "val_images": len(val.labels),
        "val_top1_pct": judge.measure()["val_top1_pct"],
        "block_variances": variances,
        "hint_pairs": [[pair.teacher_block, pair.student_block] for pair in pairs],
        "hint_weight_at_start": trainer.hint_weight(settings.beta),
        "adapter_params": sum(parameter.numel() for parameter in trainer.adapters.parameters()),
        "earlier_s": earlier_s,
    }


def load_student(distill_dir: Path) -> Student:
    """Load the student of a finished stage, in eval mode.

    Raises:
        InputError: The directory or a file in it is missing, damaged, or of another architecture or class count.
    """
    description = load_json(distill_dir / DESCRIPTION, ("arch", "image_size", "classes"))
    classes = len(description["classes"])
    student = build_student(description["arch"], classes, description["image_size"])
    load_module(student, distill_dir / WEIGHTS, f"a {description['arch']!r} student with {classes} classes")
    return student.eval()


def _check_classes(teacher_dir: Path, num_classes: int) -> None:
    found = load_json(teacher_dir / "teacher.json", ("num_classes",))["num_classes"]
    if found != num_classes:
        raise InputError(
            f"the teacher in {teacher_dir} knows {found} classes, the data set has {num_classes}",
            "train the teacher on the same --data",
        )


def _scan(config: Config, teacher: Teacher, batches: Batches) -> dict[str, float]:
    """Scan the activation variance of the teacher's blocks on the first batches of epoch 0."""
    with autocast(config.runtime):
        pixels = (pixels for pixels, _ in _first(batches, config.distill.scan_batches))
        return scan_variance(teacher, pixels)


def _first(batches: Batches, count: int) -> list[tuple[Tensor, Tensor]]:
    return [batch for _, batch in zip(range(count), batches.epoch(0), strict=False)]


def _pairs(
    blocks: tuple[str, ...], teacher: Teacher, student: Student, train: Split, device: torch.device
) -> tuple[HintPair, ...]:
    pixels = to_pixels(torch.from_numpy(train.images[:2]), device)
    student.eval()
    teacher_shapes, student_shapes = probe_shapes(teacher, student.features, pixels)
    return pair_blocks({name: teacher_shapes[name] for name in blocks}, student_shapes)


@dataclass(frozen=True)
class _Terms:
    """Which terms of the loss a step trains."""

    kd: bool
    hint: bool
    ce: bool


class _Trainer:
    """One training step of a method, with what it updates: student, adapters, optimizer, beta."""

    def __init__(
        self, config: Config, teacher: Teacher, student: Student, pairs: tuple[HintPair, ...], batches: Batches
    ) -> None:
        self.config, self.teacher, self.student = config, teacher, student
        settings = config.distill
        self.settings: DistillConfig = settings
        self.uses_hints = settings.method in ("static", "adaptive", "selective")
        self.hint_epochs = settings.hint_only_epochs
        hinted = pairs if self.uses_hints else ()
        self.adapters = place(HintAdapters(hinted, normalised=settings.hint_loss == "normalised"), batches.device)
        self.beta = BetaSchedule(
            settings.beta,
            patience=settings.beta_patience,
            warmup_epochs=self.hint_epochs,
            adaptive=settings.method in ("adaptive", "selective"),
        )
        self.optimizer = build_optimizer(settings, student, self.adapters)
        self.tap = FeatureTap(teacher, tuple(pair.teacher_block for pair in self.adapters.pairs))
        self.hint_scale = self._calibrate(batches) if self.uses_hints else 0.0

    def hint_weight(self, beta: float) -> float:
        """Return the factor of the hint loss: beta itself for raw hints, else beta / start in calibrated units."""
        if self.settings.hint_loss == "raw" or not self.settings.beta:
            return beta
        return self.hint_scale * beta / self.settings.beta

    def step(self, pixels: Tensor, labels: Tensor, epoch: int, progress: float) -> dict[str, Tensor]:
        """Train on one batch and return the named losses."""
        set_learning_rate(self.optimizer, learning_rate(progress, self.settings.lr, self.settings.schedule))
        self.student.train()
        self.adapters.train()
        hint_only = self.uses_hints and epoch < self.hint_epochs
        terms = _Terms(kd=self.settings.method != "ce" and not hint_only, hint=self.uses_hints, ce=not hint_only)
        losses = self._losses(self.student, self.adapters, pixels, labels, terms)
        weights = {"kd": self.settings.alpha, "hint": self.hint_weight(self.beta.beta), "ce": self.settings.gamma}
        if self.settings.method == "ce":
            weights["ce"] = 1.0
        trained = [name for name in losses if getattr(terms, name)]
        loss = torch.stack([weights[name] * losses[name] for name in trained]).sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"loss": loss, **losses}

    def _losses(
        self, student: Student, adapters: HintAdapters, pixels: Tensor, labels: Tensor, terms: _Terms
    ) -> dict[str, Tensor]:
        """Return the losses of a batch; cross-entropy always, the teacher's terms where they are trained."""
        losses = {}
        with autocast(self.config.runtime):
            maps = student.features(pixels)
            logits = student.classify(maps[-1]).float()
            if terms.kd or terms.hint:
                with torch.no_grad(), self.tap as tap:
                    teacher_logits, teacher_maps = self.teacher(pixels), dict(tap.maps)
                if terms.kd:
                    losses["kd"] = kd_loss(logits, teacher_logits, self.settings.temperature)
                if terms.hint:
                    losses["hint"] = adapters(maps, teacher_maps)
        losses["ce"] = functional.cross_entropy(logits, labels)
        return losses

    @torch.no_grad()
    def _calibrate(self, batches: Batches) -> float:
        """Set the adapters' units and return the factor that makes the first hint loss as large as the CE loss."""
        early = _first(batches, self.settings.scan_batches)
        self.student.eval()
        with autocast(self.config.runtime), self.tap as tap:
            self.teacher(early[0][0])
            self.adapters.calibrate(self.student.features(early[0][0]), tap.maps)
        student, adapters = copy.deepcopy(self.student).train(), copy.deepcopy(self.adapters).train()
        terms = _Terms(kd=False, hint=True, ce=True)
        losses = [self._losses(student, adapters, pixels, labels, terms) for pixels, labels in early]
        ce, hint = (sum(loss[name].item() for loss in losses) for name in ("ce", "hint"))
        return ce / hint


class _Judge:
    """Measures a student on the validation images against what the teacher said of them, computed once."""

    def __init__(
        self,
        config: Config,
        teacher: Teacher,
        student: Student,
        pairs: tuple[HintPair, ...],
        *,
        train: Split,
        val: Split,
        device: torch.device,
    ) -> None:
        self.config, self.student, self.pairs, self.val, self.device = config, student, pairs, val, device
        self.labels = torch.from_numpy(val.labels)
        self.pixels = [
            to_pixels(torch.from_numpy(split.images[:: -(-len(split.labels) // _SIMILARITY_IMAGES)].copy()), device)
            for split in (train, val)
        ]
        self.teacher_maps = []
        tap = FeatureTap(teacher, tuple(pair.teacher_block for pair in pairs))
        with torch.no_grad(), autocast(config.runtime):
            self.teacher_logits = predict_logits(teacher, val.images, device)
            for pixels in self.pixels:
                with tap:
                    teacher(pixels)
                    self.teacher_maps.append(dict(tap.maps))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return top-1 in percent, KD and CE loss, unexplained variance and cosine similarity of the features."""
        self.student.eval()
        with autocast(self.config.runtime):
            logits = predict_logits(self.student, self.val.images, self.device)
            student_maps = [self.student.features(pixels) for pixels in self.pixels]
        fit, score = zip(student_maps, self.teacher_maps, strict=True)
        unexplained, cosine = measure_similarity(self.pairs, fit, score)
        return {
            "val_top1_pct": round(100 * (logits.argmax(1) == self.labels).float().mean().item(), 4),
            "val_kd": kd_loss(logits, self.teacher_logits, self.config.distill.temperature).item(),
            "val_ce": functional.cross_entropy(logits, self.labels).item(),
            "val_hint": unexplained,
            "cosine_similarity": cosine,
        }

"""The teacher stage: fine-tune a classifier of torchvision or timm on the training images.

Reads the training images (not the test images), writes ``teacher.safetensors`` (fp32), ``teacher.json`` (architecture,
stem and classes) and ``metrics.csv`` (one row per epoch).

    kdedge teacher --out artifacts/run --teacher-epochs 7
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdedge.benchmarks.accuracy import balanced_pct
from kdedge.benchmarks.chance import check_learned
from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.files import write_json
from kdedge.manifest import load_manifest
from kdedge.ownership import is_stage
from kdedge.pipeline.config import Config
from kdedge.pipeline.data.options import WINDOWS
from kdedge.pipeline.data.sources import open_dataset, opened, training_images
from kdedge.pipeline.models.initial_weights import Start, check_start, start_teacher
from kdedge.pipeline.models.load import TEACHER_DESCRIPTION, TEACHER_WEIGHTS, load_teacher
from kdedge.pipeline.models.teacher import Teacher, check_arch, is_student
from kdedge.pipeline.models.weights import save_module
from kdedge.pipeline.tracking import open_tracking
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.augmentations import blank_squares
from kdedge.pipeline.training.balance import cross_entropy
from kdedge.pipeline.training.batches import Batch, Batches, place, predict_logits, top1_pct
from kdedge.pipeline.training.device import autocast, prepare
from kdedge.pipeline.training.epoch_loop import EpochLoop
from kdedge.pipeline.training.length import fit_to_images
from kdedge.pipeline.training.options import SIGNAL_LEVELS, TeacherConfig
from kdedge.progress import log

__all__ = ["check", "check_data", "run"]

_HINT = (
    "check the labels, train for longer (--teacher-epochs), try another --teacher-lr, or "
    "start from pretrained weights (--teacher-weights)"
)


def check(config: Config, run_dir: Path) -> None:
    """Refuse an unknown architecture, flips without augmentation, options of images with signals, and a large cutout.

    Raises:
        InputError: The architecture is unknown, or options of the augmentation contradict each other or the data.
    """
    settings, size = config.teacher, config.data.image_size
    if settings.augment == "none" and settings.flip:
        raise InputError(
            "--teacher-augment none mirrors no images: leave out --teacher-flip", "or use --teacher-augment light"
        )
    if config.data.source.startswith(WINDOWS):
        given = {
            "--teacher-flip": settings.flip,
            f"--teacher-augment {settings.augment}": settings.augment not in SIGNAL_LEVELS,
            "--teacher-cutout": settings.cutout,
            "--teacher-image-size": settings.image_size,
        }
        if wrong := [flag for flag, value in given.items() if value]:
            raise InputError(
                f"{wrong[0]} is for images; --data {config.data.source} has windows of a signal", "leave it out"
            )
    if settings.cutout > size:
        raise InputError(
            f"--teacher-cutout {settings.cutout} is larger than the images, which have {size} x {size} pixels",
            "give a smaller one; 8 or 16 are usual for images of 32 pixels",
        )
    finished = is_stage(run_dir / "teacher", "teacher") and load_manifest(run_dir / "teacher")["config"]
    if not finished or finished["teacher"]["arch"] != settings.arch:  # importing torchvision takes seconds
        check_arch(settings.arch)


def check_data(config: Config, run_dir: Path, names: Collection[str]) -> None:
    """Refuse initial weights that cannot be loaded.

    Raises:
        InputError: The file is missing, damaged or does not fit.
    """
    dataset = opened(config.data)
    check_start(config, len(dataset.class_names), dataset.spec)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Fine-tune the teacher; see `kdedge.pipeline.run_dir.StageSpec`.

    Raises:
        InputError: Bad weights, architecture or data.
        StageError: The loss diverges, weights cannot be downloaded, or the teacher has learned nothing.
    """
    settings = config.teacher
    device = prepare(config.runtime)
    dataset = open_dataset(config.data)
    start = start_teacher(settings, len(dataset.class_names), dataset.spec, config.runtime.device)
    teacher, stem, origin = start.teacher, start.stem, _Origin(start.origin, start.new_head)
    _log_start(start, settings.arch)
    train, val = training_images(dataset, config.data)
    place(teacher, device)
    settings = fit_to_images(settings, train, "teacher", start.origin != "none", teacher.image_size)
    shift, balance = 8 if train.signal else 2, config.training.balance
    batches = Batches(
        train, settings.batch_size, config.runtime.seed, shift, device, bool(settings.flip), settings.augment, balance
    )
    optimizer = _optimizer(teacher, settings)
    forward = distributed.parallel(teacher, teacher)

    def step(batch: Batch, epoch: int, rate: float) -> dict[str, Tensor]:
        body = config.teacher.peak_lr(settings.batch_size, loaded=origin.weights != "none")
        head = config.teacher.head_lr(settings.batch_size) if origin.new_head else body
        for group, peak in zip(optimizer.param_groups, (body, head), strict=True):
            group["lr"] = rate * peak
        teacher.train()
        pixels = blank_squares(batch.pixels, batch.augmentations, epoch=epoch, side=settings.cutout)
        with autocast(config.runtime):
            logits = forward(pixels)
        smoothing = settings.label_smoothing if epoch < loop.end - settings.hard_epochs else 0.0
        loss = cross_entropy(logits.float(), batch.targets, batches.class_weights, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {"loss": loss, "ce": loss, "top1_pct": top1_pct(logits, batch.labels)}

    def validate(epoch: int) -> dict[str, float]:
        right = _right(teacher, val, config, device)
        row = {"val_top1_pct": round(100 * float(right.mean()), 4)}
        return row if balance == "none" else row | {"val_balanced_pct": balanced_pct(right, val.labels)}

    loop = EpochLoop(
        title="teacher",
        model=teacher,
        epochs=settings.epochs,
        batches=batches,
        val_labels=val.labels,
        val_groups=val.groups,
        state={"model": teacher, "optimizer": optimizer, "origin": origin},
        step=step,
        finish_epoch=validate,
        out_dir=out_dir,
        csv_name="metrics.csv",
        adaptive=config.teacher.epochs < 0,
        tracked=open_tracking(config.tracking, out_dir.parent, "teacher"),
    )
    rows, earlier_s = loop.run()
    save_module(teacher, out_dir / TEACHER_WEIGHTS)
    classes = list(dataset.class_names)
    description = {"arch": settings.arch, "stem": stem, "num_classes": len(classes), "classes": classes}
    description |= {"weights": origin.weights, "image_size": teacher.image_size}
    if is_student(settings.arch):
        description = dataset.spec.record | description
    if train.signal:
        description["channels"] = len(dataset.spec.channels)
    write_json(out_dir / TEACHER_DESCRIPTION, description)
    reloaded = place(load_teacher(out_dir), device)
    right = _right(reloaded, val, config, device)
    if settings.epochs:  # untrained weights are the user's choice
        check_learned("the teacher", right, val.labels, classes, _HINT, unit=val.spec.unit)
    return {
        "arch": settings.arch,
        "stem": stem,
        "params": sum(parameter.numel() for parameter in teacher.parameters()),
        "weights": origin.weights,
        "epochs": len(rows),
        "batch_size": settings.batch_size,
        "flip": settings.flip,
        "augment": settings.augment,
        "train_images": len(train.labels),
        "val_images": len(val.labels),
        "val_top1_pct": round(100 * float(right.mean()), 4),
        "earlier_s": earlier_s,
    }


@dataclass
class _Origin:
    """Where the initial weights came from; see `kdedge.pipeline.models.initial_weights.Start`.

    It is part of a checkpoint: with ``auto``, a resumed attempt may find pretrained weights that the first attempt
    could not download, or none.
    """

    weights: str
    new_head: bool

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "new_head": self.new_head}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["weights"] != self.weights:
            log(f"teacher: the interrupted attempt began with weights {state['weights']}; it continues with their rate")
        self.weights, self.new_head = state["weights"], state["new_head"]


def _optimizer(teacher: Teacher, settings: TeacherConfig) -> torch.optim.Optimizer:
    """Return the optimizer, with one group of weights for the body and one for the head."""
    heads = tuple(f"backbone.{layer}." for layer in teacher.head)
    groups: dict[bool, list[Tensor]] = {False: [], True: []}
    for name, parameter in teacher.named_parameters():
        groups[name.startswith(heads)].append(parameter)
    return torch.optim.SGD(
        [{"params": parameters} for parameters in groups.values()],
        lr=settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay,
    )  # fmt: skip


def _log_start(start: Start, arch: str) -> None:
    why = f" ({start.stem_note})" if start.stem_note else ""
    stem = "" if is_student(arch) else f", stem {start.stem}{why}"
    log(f"teacher: {arch} from {start.title}{stem}")
    if start.missing:
        log(
            f"teacher: not loaded: {'; '.join(start.missing)}" + ("; the head starts at zero" if start.new_head else "")
        )
    if start.ignored:
        more = f" and {len(start.ignored) - 3} more" if len(start.ignored) > 3 else ""
        log(f"teacher: ignored in {start.title}: {', '.join(start.ignored[:3])}{more}")


def _right(teacher: Teacher, split: Split, config: Config, device: torch.device) -> npt.NDArray[np.bool_]:
    """Return whether the teacher predicts each image of a split correctly, ``[N] bool``."""
    teacher.eval()
    with autocast(config.runtime):
        logits = predict_logits(teacher, split, device, teacher.image_size)
    right: npt.NDArray[np.bool_] = logits.argmax(1).numpy() == split.labels
    return right

"""The finished teachers that a student learns from: loaded, frozen, each with its cache of logits."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from kdedge.dataset import Dataset, Split
from kdedge.errors import InputError
from kdedge.files import cache_dir, file_sha256, load_json
from kdedge.inputs import InputSpec
from kdedge.pipeline.config import Config
from kdedge.pipeline.distill.ensemble import Ensemble
from kdedge.pipeline.distill.teacher_logits import CachedTeacher, LogitsFile, cache_name
from kdedge.pipeline.models.load import TEACHER_DESCRIPTION, TEACHER_WEIGHTS, load_teacher
from kdedge.pipeline.models.teacher import Teacher, fold_batch_norms, is_student
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.batches import Batches, place

__all__ = ["cached_teachers", "check_fits", "frozen_teacher"]


def frozen_teacher(
    folder: Path, classes: tuple[str, ...], spec: InputSpec, config: Config, device: torch.device
) -> Teacher:
    """Load a finished teacher, frozen, with its batch norms folded.

    On a GPU the weights of its convolutions and linear layers are converted to bf16 once, instead of by autocast on
    every batch. On a CPU that saves nothing, so the weights and the bits of earlier runs stay.

    Args:
        folder: Its stage directory.
        classes: Class names of the data set.
        spec: Inputs of the data set.
        config: Decides the precision.
        device: Device of the result.

    Raises:
        InputError: It is for other classes or another kind of inputs.
    """
    teacher = load_teacher(folder)
    check_fits(folder, classes, spec)
    teacher = fold_batch_norms(teacher, spec)
    if device.type == "cuda" and config.runtime.precision == "bf16":
        for module in teacher.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    return place(teacher, device).requires_grad_(False)


def cached_teachers(
    config: Config,
    teachers: Sequence[Teacher],
    folders: Sequence[Path],
    dataset: Dataset,
    *,
    train: Split,
    batches: Batches,
) -> Ensemble:
    """Return some teachers with their caches of logits, which are computed for as many images as a step has.

    Args:
        config: Resolved; decides the precision and the caches.
        teachers: From `frozen_teacher`.
        folders: The stage directory of each.
        dataset: The data set.
        train: Its training images.
        batches: The batches of the student, whose size and shift name the caches.
    """
    count = (int(train.dataset_indices[-1]) + 1) * batches.augmentations_per_image if batches.numbered else 0
    batch_size, members = batches.size // distributed.size(), []
    for teacher, folder in zip(teachers, folders, strict=True):
        path = _logits_path(folder, dataset.train_sha256(), batches.shift, batch_size, config)
        file = LogitsFile(path, classes=len(dataset.class_names), augmentations=count)
        members.append(CachedTeacher(teacher, config.runtime, file, batch_size))
    return Ensemble(members, batches.shift if config.distill.mirrors_teacher else None)


def check_fits(teacher_dir: Path, classes: tuple[str, ...], spec: InputSpec) -> None:
    """Refuse a teacher of other inputs or classes: by their names, or by their number if it has no names.

    Raises:
        InputError: It does not fit a data set with these classes and inputs.
    """
    description = load_json(teacher_dir / TEACHER_DESCRIPTION, ("num_classes",))
    hint = "train the teacher on the same --data"
    fits = description.get("channels") == (None if spec.kind == "image" else len(spec.channels))
    if fits and is_student(description.get("arch", "")):  # others take windows of any length, and grey images
        own = InputSpec.from_record(description)
        fits = len(own.channels) == len(spec.channels) and (spec.kind == "image" or own.size == spec.size)
    if not fits:
        raise InputError(f"the teacher in {teacher_dir} cannot take {spec.words}", hint)
    if description["num_classes"] != len(classes):
        found = f"has {description['num_classes']} classes, the data set has {len(classes)}"
        raise InputError(f"the teacher in {teacher_dir} {found}", hint)
    for index, (known, name) in enumerate(zip(description.get("classes", classes), classes, strict=True)):
        if known != name:
            raise InputError(f"the teacher in {teacher_dir} calls class {index} {known!r}, the data set {name!r}", hint)


def _logits_path(teacher_dir: Path, data_sha256: str, shift: int, batch_size: int, config: Config) -> Path:
    weights, description = (file_sha256(teacher_dir / name) for name in (TEACHER_WEIGHTS, TEACHER_DESCRIPTION))
    name = cache_name((weights, description), data_sha256, shift, batch_size, config.runtime)
    return cache_dir() / "teacher-logits" / name

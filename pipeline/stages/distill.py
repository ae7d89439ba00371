"""The distillation stage: train the student on alpha * KD + beta * hint + gamma * CE.

Reads the training images (not the test images) and the teacher; writes ``student.safetensors``, ``student.json``
(architecture, image size and classes) and ``training_log_<method>.csv`` (one row per epoch).

    kdedge distill --out artifacts/run --method selective --distill-epochs 20

`kdedge.pipeline.distill.methods` describes the methods.
"""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdedge.benchmarks.accuracy import balanced_pct
from kdedge.benchmarks.chance import check_learned, majority_baseline
from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.files import write_json
from kdedge.inputs import InputSpec
from kdedge.machine import cpu_info
from kdedge.manifest import check_finished
from kdedge.ownership import is_stage
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.checks import conflicts
from kdedge.pipeline.data.sources import open_dataset, opened, training_images
from kdedge.pipeline.distill.beta import hint_share, kd_share, skill
from kdedge.pipeline.distill.blocks import COMPARED_BLOCKS, TeacherBlock, highest
from kdedge.pipeline.distill.dynamic import DynamicChoice
from kdedge.pipeline.distill.evaluator import StudentEvaluator
from kdedge.pipeline.distill.frozen_teacher import cached_teachers, check_fits, frozen_teacher
from kdedge.pipeline.distill.hints import HintPair, pair_blocks, probe_shapes, scan_variance
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.distill.start import load_given, start_student
from kdedge.pipeline.distill.trainer import Trainer, first_batches
from kdedge.pipeline.models.load import STUDENT_DESCRIPTION, STUDENT_WEIGHTS, load_student
from kdedge.pipeline.models.student import Student, build_student
from kdedge.pipeline.models.teacher import Teacher
from kdedge.pipeline.models.weights import load_weights, save_module
from kdedge.pipeline.tracking import open_tracking
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.batches import Batches, place, to_network
from kdedge.pipeline.training.device import autocast, prepare
from kdedge.pipeline.training.epoch_loop import EpochLoop
from kdedge.pipeline.training.length import fit_to_images
from kdedge.progress import log, warn

__all__ = ["HINT_DOMINATED_PCT", "check", "check_data", "run"]

Shapes = tuple[dict[str, tuple[int, int]], list[tuple[int, int]]]
HINT_DOMINATED_PCT = 90.0  # share of the gradient above which the hint loss dominates
_HINT = (
    "train for longer (--distill-epochs), lower --lr, or try without the teacher (--method ce) and from random weights "
    "(--init random)"
)


def check(config: Config, run_dir: Path) -> None:
    """Refuse files of initial weights and folders of further teachers that cannot be loaded.

    Raises:
        InputError: One is missing or damaged.
    """
    for path in config.distill.weight_files:
        load_weights(path)
    for folder in config.distill.further_teachers:
        if not is_stage(folder, "teacher"):
            raise InputError(
                f"--more-teachers {folder}: expected the folder of a finished teacher",
                "give the folder teacher/ of a run, or train one: kdedge teacher --out RUN",
            )
        check_finished(folder)


def check_data(config: Config, run_dir: Path, names: Collection[str]) -> None:
    """Refuse further teachers and initial weights that do not fit the data set.

    Raises:
        InputError: Teachers of other classes or inputs, or weights of another student.
    """
    dataset = opened(config.data)
    for folder in config.distill.further_teachers:
        check_fits(folder, dataset.class_names, dataset.spec)
    if config.distill.weight_files:
        load_given(build_student(config.distill.student, len(dataset.class_names), dataset.spec), config, dataset.spec)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Train the student; see `kdedge.pipeline.run_dir.StageSpec`.

    Raises:
        InputError: Bad data, a teacher of other classes, or initial weights that do not fit.
        StageError: The loss diverges, or the student has learned nothing.
    """
    method, adaptive = METHODS[config.distill.method], config.distill.epochs < 0
    device = prepare(config.runtime)
    dataset = open_dataset(config.data)
    classes = dataset.class_names
    student = build_student(config.distill.student, len(classes), dataset.spec)
    folders = [inputs["teacher"], *(config.distill.further_teachers if method.kd else ())]
    teachers = [frozen_teacher(folder, classes, dataset.spec, config, device) for folder in folders]
    teacher = teachers[0]
    train, val = training_images(dataset, config.data)
    config = _fitted(config, train)
    settings = config.distill
    batches = Batches(
        train,
        settings.batch_size,
        config.runtime.seed,
        settings.shift,
        device,
        bool(settings.flip),
        settings.augment,
        config.training.balance,
    )
    student, weights, pruned, widths = start_student(student, config, dataset.spec, batches)

    variances, scan_s = distributed.from_first(lambda: _scan(config, teacher, batches))
    if not variances and method.blocks:
        raise InputError(
            f"{config.teacher.arch} has no blocks whose maps hints could use",
            "use --method kd, or another --teacher, such as a ResNet",
        )
    shapes = _shapes(config, teacher, student, train, device)
    judged = _pairs(highest(variances, COMPARED_BLOCKS), shapes)
    blocks = {name: TeacherBlock(variance, shapes[0][name][1]) for name, variance in variances.items()}
    chosen = method.blocks(blocks, settings.hint_blocks, config.runtime.seed) if method.blocks else ()
    pairs = _pairs(tuple(variances) if method.dynamic else chosen, shapes)
    cached = cached_teachers(config, teachers, folders, dataset, train=train, batches=batches)
    evaluator = StudentEvaluator(
        config, teachers, student, judged, pairs if method.dynamic else (), train=train, val=val, device=device
    )
    hints, kd = _shares(evaluator, val, config)
    trainer = Trainer(
        config, cached, student, pairs=pairs, chosen=chosen, batches=batches, hint_share=hints, kd_share=kd
    )
    evaluator.student = trainer.result
    choice = None
    if method.dynamic:
        choice = DynamicChoice(
            trainer.adapters, settings.hint_blocks, every=settings.rechoose_epochs, epochs=settings.epochs
        )

    def finish_epoch(epoch: int) -> dict[str, float]:
        trainer.refresh_norms(epoch)
        trainer.cache_rest(epoch)
        row = {"lr": trainer.optimizer.param_groups[0]["lr"], **evaluator.measure()}
        row |= {"beta": trainer.beta.beta} if pairs else {}
        row |= {f"grad_{name}_pct": share for name, share in trainer.shares.items()}
        row |= {"logits_computed": distributed.total(cached.take_computed())} if method.kd else {}
        trainer.update_reliance(epoch, row, evaluator.teacher_top1_pct)
        if choice and trainer.beta.beta:
            choice.update(epoch, evaluator.unexplained)
        return row

    loop = EpochLoop(
        title=f"distill ({settings.method})",
        model=trainer.result,
        epochs=settings.epochs,
        batches=batches,
        val_labels=val.labels,
        val_groups=val.groups,
        state={
            "student": student,
            "adapters": trainer.adapters,
            "optimizer": trainer.optimizer,
            "beta": trainer.beta,
            "kd": trainer.kd,
            **({"choice": choice} if choice else {}),
            **({"average": trainer.average} if trainer.average else {}),
        },
        step=trainer.step,
        finish_epoch=finish_epoch,
        out_dir=out_dir,
        csv_name=f"training_log_{settings.method}.csv",
        schedule=settings.schedule,
        unlabelled_epochs=settings.hint_only_epochs if pairs else 0,
        adaptive=adaptive and settings.schedule == "one-cycle",
        tracked=open_tracking(config.tracking, out_dir.parent, "distill"),
    )
    with closing(cached):
        rows, earlier_s = loop.run()
    save_module(trainer.result, out_dir / STUDENT_WEIGHTS)
    description = _description(config, dataset.spec, classes) | ({"widths": list(widths)} if widths else {})
    write_json(out_dir / STUDENT_DESCRIPTION, description)
    evaluator.student = place(load_student(out_dir), device)
    measured = evaluator.measure()
    check_learned("the student", evaluator.right, val.labels, classes, _HINT, unit=val.spec.unit)
    hinted = [pair for pair in pairs if pair.teacher_block in trainer.adapters.chosen]
    return {
        **description,
        "params": sum(parameter.numel() for parameter in student.parameters()),
        "weights_sha256": weights,
        "pruned": pruned,
        "method": settings.method,
        "epochs": len(rows),
        "batch_size": settings.batch_size,
        "flip": settings.flip,
        "mean_of_flips": settings.mirrors_teacher,
        "augment": settings.augment,
        "balance": config.training.balance,
        "train_images": len(train.labels),
        "val_images": len(val.labels),
        "val_top1_pct": measured["val_top1_pct"],
        "val_ce": measured["val_ce"],
        "teacher_val_top1_pct": evaluator.teacher_top1_pct,
        "block_variances": variances,
        "hint_pairs": [[pair.teacher_block, pair.student_block] for pair in hinted],
        "hint_choices": choice.history if choice else [],
        "hint_weight_at_start": trainer.hint_weight(hints * settings.beta) if pairs else 0.0,
        "hint_map_bytes": max(
            batches.size * _map_bytes(blocks, shapes[0], dataset.spec.dimensions, config.runtime.precision)
            for blocks in ([entry["chosen"] for entry in choice.history] if choice else [chosen])
        ),
        "drowned_epochs": _hint_dominated_epochs(rows, settings),
        "adapter_params": sum(parameter.numel() for parameter in trainer.adapters.parameters()),
        "scan_s": round(scan_s, 2),
        "logits_computed": _logits_computed(rows),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_info().name or None,
        "earlier_s": earlier_s,
    }


def _description(config: Config, spec: InputSpec, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of ``student.json``."""
    return {"arch": config.distill.student, **spec.record, "classes": list(classes)}


def _fitted(config: Config, train: Split) -> Config:
    """Return the configuration with the settings that depend on the training images."""
    settings = fit_to_images(config.distill, train, f"distill ({config.distill.method})", bool(config.distill.weights))
    for problem in conflicts(config.data, settings):
        raise InputError(problem, "give another number of epochs with --distill-epochs")
    return dataclasses.replace(config, distill=settings)


def _scan(config: Config, teacher: Teacher, batches: Batches) -> tuple[dict[str, float], float]:
    """Return the activation variance of the teacher's blocks in epoch 0, and the time in seconds."""
    start, early = time.monotonic(), first_batches(batches, config.distill.scan_batches)
    with autocast(config.runtime):
        variances = scan_variance(teacher, (batch.pixels for batch in early))
    return variances, time.monotonic() - start


def _shapes(config: Config, teacher: Teacher, student: Student, train: Split, device: torch.device) -> Shapes:
    """Return (channels, side length) of every teacher block by name, and of every student block."""
    student.eval()
    with autocast(config.runtime):
        few = to_network(torch.from_numpy(train.images[:2].copy()), train.spec, device)
        return probe_shapes(teacher, student.features, few)


def _pairs(blocks: tuple[str, ...], shapes: Shapes) -> tuple[HintPair, ...]:
    return pair_blocks({name: shapes[0][name] for name in blocks}, shapes[1])


def _shares(evaluator: StudentEvaluator, val: Split, config: Config) -> tuple[float, float]:
    """Return the shares of beta and alpha that the teacher's accuracy justifies; log shares below 1."""
    settings, method = config.distill, METHODS[config.distill.method]
    if not settings.adapt_to_teacher:
        return 1.0, 1.0
    known = skill(evaluator.teacher_top1_pct, majority_baseline(val.labels).top1_pct)
    if config.training.balance != "none":
        known = skill(balanced_pct(evaluator.teacher_right, val.labels), 100 / len(np.unique(val.labels)))
    shares = {"hints": hint_share(known) if method.adaptive_beta else 1.0, "KD": kd_share(known) if method.kd else 1.0}
    if min(shares.values()) < 1:
        weights = " and ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share < 1)
        log(
            f"distill ({settings.method}): the teacher has {evaluator.teacher_top1_pct:.2f} % on validation data, so "
            f"its terms get a share of their weight: {weights}"
        )
    return shares["hints"], shares["KD"]


def _map_bytes(
    blocks: Sequence[str], teacher_shapes: dict[str, tuple[int, int]], dimensions: int, precision: str
) -> int:
    """Return the size of the teacher's hint maps of one input, in bytes."""
    sizes = [(channels, int(side**dimensions)) for channels, side in (teacher_shapes[block] for block in blocks)]
    return sum(channels * places for channels, places in sizes) * (2 if precision == "bf16" else 4)


def _hint_dominated_epochs(rows: list[dict[str, float]], settings: DistillConfig) -> int:
    """Count the epochs on whose first batch the hint loss dominated the gradient; warn if there are any."""
    dominated = sum(row.get("grad_hint_pct", 0.0) > HINT_DOMINATED_PCT for row in rows[settings.hint_only_epochs :])
    if dominated:
        warn(
            f"distill ({settings.method}): the hint loss dominated the gradient (> {HINT_DOMINATED_PCT:.0f} %) in "
            f"{dominated} of {len(rows)} epochs; lower --beta, or use --hint-loss normalised"
        )
    return dominated


def _logits_computed(rows: list[dict[str, float]]) -> int:
    """Count and log the logits of the teacher that were not in the cache."""
    counts = [int(row["logits_computed"]) for row in rows if "logits_computed" in row]
    if counts:
        log(f"teacher logits: {sum(counts):,} computed, the others were in the cache")
    return sum(counts)

"""The training speed of kdedge compared with three other ways to train the same models, in one run.

- ``plain``: a usual script: float32, NCHW, a DataLoader with torchvision transforms, batch 64; the teacher's logits are
  computed in every step.
- ``airbench``: the loop of K. Jordan's airbench94 (arXiv:2404.00498) in our own words, for our models: all images
  normalised in one tensor on the device, flipped alternately and cropped once per epoch, no DataLoader.
- ``timm``: loader, task and optimizer of timm, in the order of its ``train.py`` (which is not in its wheel), with the
  options ``--amp --amp-dtype bfloat16 --channels-last``; distillation by its ``LogitDistillationTask``.
- ``kdedge``: batches and steps of the stages ``teacher`` and ``distill``.

All but ``plain`` have the precision, memory format and batch size of kdedge, and all have its setting of the allocator.
The tasks: the training of the teacher, and that of the student on labels, or on labels and the teacher's logits, which
kdedge finds in its cache in later runs. A round is an epoch of every way in turn. Images are loaded in the training
process: on a CPU, workers take cores from the training.

On a CPU the time is CPU time, which other processes hardly change; with one thread it is that of a quiet core.

    python experiments/training_speed.py [--threads 1] [--rounds 7] [--images 512] [--student lite]
"""

import argparse
import atexit
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdedge.dataset import Split
from kdedge.inputs import image_input
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.distill.ensemble import Ensemble
from kdedge.pipeline.distill.teacher_logits import CachedTeacher, LogitsFile
from kdedge.pipeline.distill.trainer import Trainer
from kdedge.pipeline.models.student import Student, build_student
from kdedge.pipeline.models.teacher import Teacher, build_teacher, fold_batch_norms
from kdedge.pipeline.training.batches import Batches, place
from kdedge.pipeline.training.device import autocast, prepare, resolve
from kdedge.pipeline.training.options import RuntimeConfig

SIZE, CLASSES, BATCH = 32, 10, 128
TASKS = {"teacher": "teacher", "labels": "student, labels", "logits": "student, logits", "cached": "the same, cached"}
EPOCHS = {"teacher": 7, "logits": 20}  # of a default run

Epoch = Callable[[], None]


@dataclass(frozen=True)
class Models:
    """Builds the models with random weights."""

    name: str
    device: torch.device

    def teacher(self) -> Teacher:
        """Return a teacher."""
        return build_teacher("resnet18", CLASSES, "cifar-pool").to(self.device)

    def student(self) -> Student:
        """Return a student."""
        return build_student(self.name, CLASSES, image_input(SIZE)).to(self.device)


class OneByOne(Dataset[tuple[Any, int]]):
    """Images that a transform takes one at a time."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the transformed image and its label."""
        image = Image.fromarray(self.split.images[index])
        return self.transform(image) if self.transform else image, int(self.split.labels[index])


class WholeTensor:
    """The batches of airbench."""

    def __init__(self, split: Split, device: torch.device, shift: int = 2) -> None:
        images = torch.from_numpy(np.array(split.images)).to(device).permute(0, 3, 1, 2).float().div_(255)
        flipped = torch.rand(len(split), device=device) < 0.5
        images[flipped] = images[flipped].flip(-1)
        self._padded = functional.pad(images, (shift,) * 4, "reflect")
        self._labels, self._shift, self._epoch = torch.from_numpy(split.labels).to(device), shift, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch; every second one has all images flipped."""
        count, span = len(self._labels), 2 * self._shift + 1
        images = torch.empty(count, 3, SIZE, SIZE, device=self._padded.device).to(memory_format=torch.channels_last)
        places = torch.randint(span, (2, count), device=images.device)
        for row in range(span):
            for column in range(span):
                here = (places[0] == row) & (places[1] == column)
                images[here] = self._padded[here, :, row : row + SIZE, column : column + SIZE]
        if self._epoch % 2:
            images = images.flip(-1)
        self._epoch += 1
        for part in torch.randperm(count, device=images.device).split(BATCH):
            yield images[part], self._labels[part]


def epoch_of(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    runtime: RuntimeConfig,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Epoch:
    """Return a function that trains a model for one epoch on ``loss_of(logits, pixels, labels)``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def run() -> None:
        model.train()
        for batch in batches:
            pixels, labels = (part.to(runtime.device) for part in batch)
            with autocast(runtime):
                logits = model(pixels).float()
                loss = loss_of(logits, pixels, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def cross_entropy(logits: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a training on labels."""
    return functional.cross_entropy(logits, labels, label_smoothing=0.1)


def distillation(teacher: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the loss of a training with a teacher that runs in every step."""

    def loss_of(logits: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(pixels).float()
        student, wanted = (functional.log_softmax(one / 4, 1) for one in (logits, target))
        kd = functional.kl_div(student, wanted, reduction="batchmean", log_target=True)
        return functional.cross_entropy(logits, labels) + 16 * kd

    return loss_of


def plain(split: Split, models: Models, runtime: RuntimeConfig) -> dict[str, Epoch]:
    """Return the epochs of a usual script."""
    steps = [transforms.RandomCrop(SIZE, padding=2), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    loader = DataLoader(OneByOne(split, transforms.Compose(steps)), batch_size=64, shuffle=True)
    runtime = dataclasses.replace(runtime, precision="fp32")
    return {
        "teacher": epoch_of(models.teacher(), loader, runtime, cross_entropy),
        "labels": epoch_of(models.student(), loader, runtime, cross_entropy),
        "logits": epoch_of(models.student(), loader, runtime, distillation(models.teacher().eval())),
    }


def airbench(split: Split, models: Models, runtime: RuntimeConfig) -> dict[str, Epoch]:
    """Return the epochs of airbench's loop; it has no distillation."""
    return {
        "teacher": epoch_of(
            place(models.teacher(), models.device), WholeTensor(split, models.device), runtime, cross_entropy
        ),
        "labels": epoch_of(
            place(models.student(), models.device), WholeTensor(split, models.device), runtime, cross_entropy
        ),
    }


def timm(split: Split, models: Models, runtime: RuntimeConfig) -> dict[str, Epoch]:
    """Return the epochs of timm."""
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.task import ClassificationTask, LogitDistillationTask
    from timm.task.distillation import DistillationTeacher

    def epoch(task: nn.Module) -> Epoch:
        loader = create_loader(
            OneByOne(split), (3, SIZE, SIZE), BATCH, is_training=True, train_crop_mode="rkrc", color_jitter=0,
            num_workers=0, persistent_workers=False, device=models.device,
        )  # fmt: skip
        optimizer = create_optimizer_v2(task, opt="sgd", lr=0.01, weight_decay=5e-4)

        def run() -> None:
            task.train()
            for pixels, labels in loader:
                with autocast(runtime):
                    loss = task(pixels.contiguous(memory_format=torch.channels_last), labels)["loss"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return run

    teacher, frozen, on_labels, distilled = (
        build().to(memory_format=torch.channels_last)
        for build in (models.teacher, models.teacher, models.student, models.student)
    )
    distilled.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    task = LogitDistillationTask(distilled, DistillationTeacher(frozen), nn.CrossEntropyLoss(), device=models.device)
    return {
        "teacher": epoch(ClassificationTask(teacher, device=models.device)),
        "labels": epoch(ClassificationTask(on_labels, device=models.device)),
        "logits": epoch(task.to(models.device)),
    }


def kdedge(split: Split, models: Models, runtime: RuntimeConfig) -> dict[str, Epoch]:
    """Return the epochs of kdedge's stages."""
    batches = Batches(split, BATCH, 0, 2, models.device)
    frozen = place(fold_batch_norms(models.teacher().cpu().eval(), image_input(SIZE)), models.device)
    folder = Path(tempfile.mkdtemp(prefix="kdedge-speed-"))
    atexit.register(shutil.rmtree, folder)

    def distill(method: str, *, cached: bool = False) -> Epoch:
        options = {"method": method, "lr": 0.01, "batch_size": BATCH}
        config = build_config({"runtime": dataclasses.asdict(runtime), "distill": options})
        augmentations = len(split) * batches.augmentations_per_image if cached else 0
        file = LogitsFile(folder / "logits", classes=CLASSES, augmentations=augmentations)
        members = Ensemble([CachedTeacher(frozen.requires_grad_(False), runtime, file, BATCH)])
        student = place(models.student(), models.device)
        trainer = Trainer(config, members, student, pairs=(), chosen=(), batches=batches)

        def run() -> None:
            for batch in batches.epoch(0):
                trainer.step(batch, 1, 0.1)

        return run

    class Known:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return (batch[:2] for batch in batches.epoch(0))

    return {
        "teacher": epoch_of(place(models.teacher(), models.device), Known(), runtime, cross_entropy),
        "labels": distill("ce"),
        "logits": distill("kd"),
        "cached": distill("kd", cached=True),
    }


def seconds(epoch: Epoch, device: torch.device) -> float:
    """Return the time of an epoch: CPU time on a CPU, else wall time."""
    if device.type == "cpu":
        start = time.process_time()
        epoch()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    epoch()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(ways: dict[str, dict[str, Epoch]], rounds: int, device: torch.device) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each round by task and way; a first round warms up."""
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for task, way in ((task, way) for task in TASKS for way in ways if task in ways[way]):
            taken = seconds(ways[way][task], device)
            if number:
                found.setdefault((task, way), []).append(taken)
    return found


def median_and_spread(values: list[float], digits: int) -> str:
    """Return the median, the least and the largest of some values."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure all ways and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=512, help="of an epoch")
    parser.add_argument("--student", default="lite")
    options = parser.parse_args()
    runtime = resolve(RuntimeConfig(threads=options.threads), None)
    models, rng = Models(options.student, prepare(runtime)), np.random.default_rng(0)
    count = options.images
    split = Split(rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8), rng.integers(0, CLASSES, count))
    ways = {way.__name__: way(split, models, runtime) for way in (plain, airbench, timm, kdedge)}
    found = measure(ways, options.rounds, models.device)

    print(f"{runtime.device}, {runtime.isa}, {runtime.threads} threads, {runtime.precision}, {options.rounds} rounds\n")
    print(f"| ms per image | {' | '.join(ways)} |\n|---|" + "---:|" * len(ways))
    for task, title in TASKS.items():
        cells = [[1e3 * taken / count for taken in found.get((task, way), [])] for way in ways]
        print(f"| {title} | " + " | ".join(median_and_spread(cell, 3) if cell else "" for cell in cells) + " |")
    print(f"\n| times the time of kdedge | {' | '.join(ways)} |\n|---|" + "---:|" * len(ways))
    totals = {}
    for task, title in TASKS.items():
        baseline = found[task, "kdedge"]
        others = [found.get((task, way), found.get(("logits", way), []) if task == "cached" else []) for way in ways]
        cells = [[a / b for a, b in zip(other, baseline, strict=False)] for other in others]
        print(f"| {title} | " + " | ".join(median_and_spread(cell, 2) if cell else "" for cell in cells) + " |")
    for way in ways:
        if ("logits", way) in found:
            totals[way] = sum(count * np.array(found[task, way]) for task, count in EPOCHS.items())
    cells = [median_and_spread((totals[way] / totals["kdedge"]).tolist(), 2) if way in totals else "" for way in ways]
    print(f"| {EPOCHS['teacher']} + {EPOCHS['logits']} epochs | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

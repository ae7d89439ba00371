"""The training speed of kdedge compared with a plain script, on the same architectures and this machine.

The plain script uses fp32, NCHW, a DataLoader with torchvision transforms and batch 64, and computes the teacher's
logits in every step. A few steps of teacher training and of distillation are timed both ways, and the time of a full
default run (45,000 images; epochs as in the default preset) is extrapolated from the throughput.

    python experiments/training_speed.py [--steps 12]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdedge.dataset import Split
from kdedge.inputs import image_input
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.teacher import build_teacher, fold_batch_norms
from kdedge.pipeline.training.batches import Batch, Batches, place
from kdedge.pipeline.training.device import autocast, prepare, resolve
from kdedge.pipeline.training.options import RuntimeConfig, TeacherConfig

IMAGES = 45_000


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """Images through the usual transforms, one at a time."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=2), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return (float32 [3, 32, 32] in 0..1, label)."""
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def trainer(model: nn.Module, teacher: nn.Module | None, runtime: RuntimeConfig) -> Callable[[Tensor, Tensor], None]:
    """Return a training step: cross-entropy, and KD if there is a teacher."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    model.train()

    def step(pixels: Tensor, labels: Tensor) -> None:
        with autocast(runtime):
            logits = model(pixels).float()
            loss = functional.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(pixels).float()
                loss = loss + functional.mse_loss(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def images_per_second(
    step: Callable[[Tensor, Tensor], None],
    batches: list[Batch] | DataLoader[tuple[Tensor, int]],
    steps: int,
) -> float:
    """Time ``steps`` steps after three for warming up."""
    iterator = iter(batches)
    for _ in range(3):
        step(*next(iterator)[:2])
    seen, start = 0, time.perf_counter()
    for _ in range(steps):
        pixels, labels, *_ = next(iterator)
        step(pixels, labels)
        seen += len(labels)
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Measure both ways and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (8192, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 8192))

    plain = resolve(RuntimeConfig(precision="fp32"), None)
    speeds: dict[str, dict[str, float]] = {"plain": {}, "kdedge": {}}
    # First the plain way, because `prepare` changes how the C library allocates.
    loader = DataLoader(PlainDataset(split), batch_size=64, shuffle=True, num_workers=plain.threads)
    teacher = build_teacher("resnet18", 10, "cifar-pool")
    student = build_student("lite", 10, image_input(32))
    speeds["plain"]["teacher"] = images_per_second(trainer(teacher, None, plain), loader, steps * 2)
    teacher.eval()
    speeds["plain"]["distill"] = images_per_second(trainer(student, teacher, plain), loader, steps * 2)

    runtime = resolve(RuntimeConfig(), None)
    device = prepare(runtime)
    batches = list(Batches(split, 128, 0, 2, device).epoch(0))
    teacher, student = place(teacher, device), place(student, device)
    speeds["kdedge"]["teacher"] = images_per_second(trainer(teacher, None, runtime), batches, steps)
    teacher = fold_batch_norms(teacher.eval(), image_input(32))
    speeds["kdedge"]["distill"] = images_per_second(trainer(student, teacher, runtime), batches, steps)

    epochs = {"teacher": TeacherConfig().epochs, "distill": DistillConfig().epochs}
    print(f"{runtime.threads} threads, {runtime.isa}, kdedge in {runtime.precision}\n")
    print("| way | teacher img/s | distill img/s | training of a default run |\n|---|---|---|---|")
    minutes = {}
    for way, speed in speeds.items():
        minutes[way] = sum(IMAGES * epochs[stage] / speed[stage] for stage in epochs) / 60
        print(f"| {way} | {speed['teacher']:.0f} | {speed['distill']:.0f} | {minutes[way]:.0f} min |")
    print(f"\nratio: {minutes['plain'] / minutes['kdedge']:.2f}")


if __name__ == "__main__":
    main()

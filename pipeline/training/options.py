"""Options of the teacher's training, and of where and how exactly every training computes."""

from dataclasses import dataclass
from pathlib import Path

from kdedge.options import option

__all__ = ["AUGMENT_LEVELS", "SIGNAL_LEVELS", "RuntimeConfig", "TeacherConfig", "TrainingConfig"]

AUGMENT_LEVELS = {
    "none": "no augmentation",
    "light": "shifts and flips",
    "standard": "crop and scale, flips, colors, erasing",
    "strong": "the same, TrivialAugment, mixup, CutMix",
}
SIGNAL_LEVELS = ("none", "light")
"""Those of windows of a signal, which are shifted and never mirrored."""


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher network and its fine-tuning."""

    arch: str = option(
        "resnet18",
        "Name of a torchvision classifier, timm/NAME for one of timm, or kdedge/NAME for a student of kdedge.",
        flag="--teacher",
    )
    weights: str = option(
        "auto",
        "Initial weights: auto (pretrained weights if available, otherwise random), imagenet (pretrained), none, or "
        "the path of a .safetensors, .pth or .ckpt file.",
        flag="--teacher-weights",
    )
    stem: str = option(
        "auto",
        "ResNet stem: imagenet (7x7/2 + pool), cifar (3x3), cifar-pool (3x3 + 2x2 pool), or auto.",
        flag="--teacher-stem",
        choices=("auto", "imagenet", "cifar", "cifar-pool"),
    )
    image_size: int = option(
        0, "Side length in pixels to which the teacher resizes its images.", flag="--teacher-image-size",
        least=0, most=1024, auto="that of its pretrained weights for a teacher of timm, --image-size for others",
    )  # fmt: skip
    epochs: int = option(
        -1,
        "Epochs of fine-tuning (0 = use the weights unchanged).",
        flag="--teacher-epochs",
        least=-1,
        auto="7 for 45,000 images, more for fewer",
    )
    batch_size: int = option(
        0, "Images or windows per step.", flag="--teacher-batch-size", least=0, most=4096,
        auto="128, fewer for less than 6,400 images or above 128 pixels",
    )  # fmt: skip
    lr: float = option(
        0.0,
        "Peak learning rate (SGD, one cycle). A new head on loaded weights has at least that of random weights.",
        flag="--teacher-lr",
        least=0,
        most=10,
        auto="0.1 for random and 0.01 for loaded initial weights at 128 images per step, in proportion for others",
    )
    weight_decay: float = option(5e-4, "Weight decay.", flag="--teacher-weight-decay", least=0, most=1)
    label_smoothing: float = option(0.1, "Label smoothing.", flag="--teacher-label-smoothing", least=0, most=0.9)
    hard_epochs: int = option(
        0, "Epochs at the end without label smoothing: students learn more from such a teacher.",
        flag="--teacher-hard-epochs", least=0,
    )  # fmt: skip
    augment: str = option(
        "light",
        "Augmentation of the teacher's inputs, with the levels of --augment.",
        flag="--teacher-augment",
        choices=tuple(AUGMENT_LEVELS),
    )
    flip: bool | None = option(
        None,
        "Mirror half of the teacher's images.",
        flag="--teacher-flip",
        auto="yes, unless mirrored images look like another class",
    )
    cutout: int = option(
        0, "Side of the square that is blanked in each image of the teacher, in pixels (0 = none).",
        flag="--teacher-cutout", least=0, most=512,
    )  # fmt: skip

    @property
    def weight_files(self) -> list[Path]:
        """The file of the initial weights, if they are in one."""
        return [] if self.weights in ("auto", "imagenet", "none") else [Path(self.weights)]

    def peak_lr(self, images_per_step: int, *, loaded: bool) -> float:
        """Return the peak learning rate for loaded or for random initial weights."""
        return self.lr or (0.01 if loaded else 0.1) * images_per_step / 128

    def head_lr(self, images_per_step: int) -> float:
        """Return the peak learning rate of a new head on loaded weights."""
        return max(self.lr, 0.1 * images_per_step / 128)


@dataclass(frozen=True)
class TrainingConfig:
    """Options of both trainings, of the teacher and of the student."""

    balance: str = option(
        "none",
        "For classes of unequal size: none, loss (an image or window of a rare class weighs more) or sampler (an epoch "
        "shows all classes equally often).",
        flag="--balance",
        choices=("none", "loss", "sampler"),
    )


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how exactly to compute. These decide the bits of the trained weights."""

    seed: int = option(
        0,
        "Seed of weights, batches and samples. The data split does not depend on it.",
        flag="--seed",
        least=0,
        most=2**31 - 1,
    )
    device: str = option("auto", "Training device.", flag="--device", choices=("auto", "cpu", "cuda"))
    threads: int = option(
        0, "CPU threads for training (0 = all cores of this process).", flag="--threads", least=0, most=1024
    )
    precision: str = option(
        "auto", "Training precision: fp32, bf16 (autocast) or auto (the faster one).", flag="--precision",
        choices=("auto", "fp32", "bf16"),
    )  # fmt: skip
    isa: str = option("auto", "Instruction set of the CPU that trains (recorded, not chosen).", flag="")
    processes: int = option(1, "Processes of a training, by torchrun (recorded, not chosen).", flag="", least=1)

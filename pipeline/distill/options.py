"""Options of the student and its distillation."""

from dataclasses import dataclass
from pathlib import Path

from kdedge.options import option
from kdedge.parsing import parse_paths
from kdedge.pipeline.distill.beta import BETA_UNIT
from kdedge.pipeline.distill.methods import METHODS
from kdedge.pipeline.models.registry import STUDENTS
from kdedge.pipeline.training.options import AUGMENT_LEVELS

__all__ = ["DistillConfig"]


@dataclass(frozen=True)
class DistillConfig:
    """The student and how it learns: loss = alpha * KD + beta * hint + gamma * CE."""

    student: str = option(
        "lite",
        "Student: "
        + "; ".join(f"{name}, {spec.note}" for name, spec in STUDENTS.items())
        + ". run-all trains several names (comma-separated) and chooses one.",
        flag="--student",
        choices=tuple(STUDENTS),
        several=True,
    )
    method: str = option(
        "selective",
        "How the student learns: " + "; ".join(f"{name}, {method.note}" for name, method in METHODS.items()) + ".",
        flag="--method",
        choices=tuple(METHODS),
    )
    recipe: str = option(
        "kdedge",
        "Training recipe, refined by other options: kdedge (the defaults) or source (as in the source of the method).",
        flag="--recipe",
        choices=("kdedge", "source"),
    )
    epochs: int = option(
        -1,
        "Epochs of distillation (0 = use --student-weights unchanged).",
        flag="--distill-epochs",
        least=-1,
        auto="20 for 45,000 images, more for fewer",
    )
    batch_size: int = option(
        0,
        "Images or windows per step.",
        flag="--distill-batch-size",
        least=0,
        most=4096,
        auto="128, fewer for less than 6,400 images or above 128 pixels",
    )
    optimizer: str = option("sgd", "Optimizer.", flag="--optimizer", choices=("sgd", "adam"))
    schedule: str = option("one-cycle", "Learning-rate schedule.", flag="--schedule", choices=("one-cycle", "constant"))
    lr: float = option(
        0.0,
        "Peak learning rate.",
        flag="--lr",
        least=0,
        most=10,
        auto="0.1 at 128 images per step, in proportion for others",
    )
    weight_decay: float = option(5e-4, "Weight decay.", flag="--weight-decay", least=0, most=1)
    init: str = option(
        "whitening",
        "Initial weights: whitening (first convolution whitens patches, the others start as identities; random for "
        "images without color) or random.",
        flag="--init",
        choices=("whitening", "random"),
    )
    weights: str = option(
        "",
        "Initial weights from student.safetensors of a run with the same --student and classes. Several files, "
        "comma-separated, are averaged. Of a wider student with the same pools the best channels are taken.",
        flag="--student-weights",
        parse=parse_paths,
    )
    prune: float = option(
        0.0,
        "Share of the multiply-accumulates of the student in --student-weights that are kept: its best channels, in "
        "multiples of 16 (0 = all).",
        flag="--prune",
        least=0,
        most=1,
    )
    prune_by: str = option(
        "taylor",
        "Score of channels: taylor (change of the loss), or the controls l1 (size of the weights), random and scratch "
        "(the widths of taylor, weights of an untrained student).",
        flag="--prune-by",
        choices=("taylor", "l1", "random", "scratch"),
    )
    norm_bias_lr: float = option(
        64.0, "Learning rate of batch-norm biases, in multiples of --lr.", flag="--norm-bias-lr", least=0.01, most=1000
    )
    refresh_norms: bool = option(
        True, "Recompute batch-norm statistics after each epoch, on training data.",
        flag="--refresh-norms",
    )  # fmt: skip
    ema: float = option(
        0.0,
        "Decay per step of an exponential moving average of the student's weights, which is then the result (0 = none; "
        "0.999 suits trainings of many thousand steps).",
        flag="--ema",
        least=0,
        most=0.99999,
    )
    more_teachers: str = option(
        "",
        "Folders of further finished teachers, such as artifacts/other/teacher, comma-separated. The KD term learns "
        "from the mean of all teachers' logits.",
        flag="--more-teachers",
        parse=parse_paths,
    )
    mean_of_flips: bool = option(
        False,
        "The KD term learns from the mean of the teacher's logits of an image and of its mirror image, if the "
        "student's images are mirrored.",
        flag="--mean-of-flips",
    )
    temperature: float = option(4.0, "Softmax temperature T of the KD term.", flag="--temperature", least=0.1, most=100)
    alpha: float = option(1.0, "Weight of the KD term.", flag="--alpha", least=0, most=1000)
    beta: float = option(
        10 * BETA_UNIT,
        f"Initial weight of the hint term. With {BETA_UNIT:g}, normalised hints start as large as the cross-entropy.",
        flag="--beta",
        least=0,
        most=1e6,
    )
    gamma: float = option(1.0, "Weight of the cross-entropy term.", flag="--gamma", least=0, most=1000)
    beta_patience: int = option(
        2, "Epochs without a better validation KD loss before beta is halved.", flag="--beta-patience", least=1
    )
    adapt_to_teacher: bool = option(
        True,
        "Reduce or drop hints and KD of a weak teacher, and end both once the student is better than the teacher.",
        flag="--adapt-to-teacher",
    )
    hint_loss: str = option(
        "normalised",
        f"Hint loss: normalised (unexplained variance, beta relative to {BETA_UNIT:g}) or raw (MSE, beta as given).",
        flag="--hint-loss",
        choices=("normalised", "raw"),
    )
    hint_blocks: int = option(
        3,
        "Number of teacher blocks with hints. The methods static and adaptive use the stage ends, all uses all blocks.",
        flag="--hint-blocks",
        least=1,
        most=8,
    )
    hint_epochs: int = option(
        -1, "Hint-only epochs at the start (-1 = 5 for static, 0 for other methods).", flag="--hint-epochs", least=-1
    )
    rechoose_epochs: int = option(
        5, "Interval in epochs at which the method dynamic chooses blocks again.", flag="--rechoose-epochs", least=1
    )
    scan_batches: int = option(
        10, "Batches for the activation-variance scan and for --refresh-norms.", flag="--scan-batches", least=1
    )
    augment: str = option(
        "light",
        "Augmentation of the student's inputs: "
        + "; ".join(f"{level}, {note}" for level, note in AUGMENT_LEVELS.items())
        + ".",
        flag="--augment",
        choices=tuple(AUGMENT_LEVELS),
    )
    mix: float = option(
        0.0,
        "Share of the batches whose images are mixed, each with its neighbour, by mixup or CutMix (0 = none; 0.5 suits "
        "few photographs). The teacher sees the mixed images, too. None is mixed at the end, below a tenth of --lr.",
        flag="--mix",
        least=0,
        most=1,
    )
    shift: int = option(2, "Random shift in pixels or samples, with --augment light.", flag="--shift", least=0, most=16)
    flip: bool | None = option(
        None,
        "Mirror half of the student's images.",
        flag="--flip",
        auto="yes, unless mirrored images look like another class",
    )

    def peak_lr(self, images_per_step: int, *, loaded: bool) -> float:
        """Return the peak learning rate; the same for loaded and for random initial weights."""
        return self.lr or 0.1 * images_per_step / 128

    @property
    def weight_files(self) -> list[Path]:
        """The files of the initial weights, if there are any."""
        return parse_paths(self.weights, "--student-weights")

    @property
    def further_teachers(self) -> list[Path]:
        """The folders of further teachers."""
        return parse_paths(self.more_teachers, "--more-teachers")

    @property
    def mirrors_teacher(self) -> bool:
        """Whether the teacher sees mirror images, too, once ``flip`` is known."""
        return self.mean_of_flips and bool(self.flip)

    @property
    def hint_only_epochs(self) -> int:
        """Epochs at the start that train only the hint term."""
        if self.hint_epochs >= 0:
            return self.hint_epochs
        return METHODS[self.method].hint_epochs

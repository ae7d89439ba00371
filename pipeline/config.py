"""The configuration of a run: every option once, with its default, unit and range.

One frozen dataclass per section. The command line makes a flag of every field (``flag`` in its metadata), a TOML
file has a table per section and a key per field; precedence is flag, then ``--config`` file, then recipe, then preset,
then the default here. `pipeline.configure` merges them.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.distill.beta import BETA_UNIT
from pipeline.distill.methods import METHODS
from pipeline.models.registry import STUDENTS
from pipeline.parsing import parse_counts, parse_cpus, parse_emulated, parse_paths

__all__ = [
    "SECTIONS",
    "BenchmarkConfig",
    "BundleConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "ExportConfig",
    "QuantizeConfig",
    "RuntimeConfig",
    "TeacherConfig",
]


def option(
    default: Any,
    help: str,
    *,
    flag: str,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    parse: Callable[[str, str], object] | None = None,
    auto: str = "",
) -> Any:
    """Declare a field: help text, flag, and the inclusive range, the choices or the parser of its value.

    ``auto`` describes what the default stands for, where it is chosen by the data. A default of None is a bool that is
    chosen so.
    """
    kind = bool if default is None else type(default)
    meta: dict[str, Any] = {"help": help, "flag": flag, "least": least, "most": most, "choices": choices}
    meta |= {"parse": parse, "kind": kind, "auto": auto}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how the training images are split."""

    source: str = option("cifar10", "Data set: cifar10, sample or folder:PATH.", flag="--data")
    dir: str = option(
        "",
        "Folder with CIFAR-10 in an official format. If not given, CIFAR-10 comes from the cache or a download.",
        flag="--data-dir",
    )
    image_size: int = option(32, "Side length of the images in pixels.", flag="--image-size", least=16, most=512)
    val_fraction: float = option(
        0.1, "Share of the training images held out for validation.", flag="--val-fraction", least=0.01, most=0.5
    )
    test_fraction: float = option(
        0.2, "Share of test images if a folder has no train/ and test/.", flag="--test-fraction", least=0.05, most=0.5
    )
    train_size: int = option(
        0, "Number of training images, stratified by class (0 = all).", flag="--train-size", least=0
    )


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher network and its fine-tuning."""

    arch: str = option("resnet18", "Name of a torchvision classifier.", flag="--teacher")
    weights: str = option(
        "auto",
        "Initial weights: auto (ImageNet weights if available, otherwise random), imagenet, none, or the path of a "
        ".safetensors, .pth or .ckpt file.",
        flag="--teacher-weights",
    )
    stem: str = option(
        "auto",
        "ResNet stem: imagenet (7x7/2 + pool), cifar (3x3), cifar-pool (3x3 + 2x2 pool), or auto.",
        flag="--teacher-stem",
        choices=("auto", "imagenet", "cifar", "cifar-pool"),
    )
    epochs: int = option(
        -1,
        "Epochs of fine-tuning (0 = use the weights unchanged).",
        flag="--teacher-epochs",
        least=-1,
        auto="7 for 45,000 images, more for fewer",
    )
    batch_size: int = option(
        0, "Images per step.", flag="--teacher-batch-size", least=0, most=4096,
        auto="128, fewer for less than 6,400 images",
    )  # fmt: skip
    lr: float = option(
        0.0, "Peak learning rate (SGD, one cycle).", flag="--teacher-lr", least=0, most=10,
        auto="0.1 for random and 0.01 for loaded initial weights at 128 images per step, in proportion for others",
    )  # fmt: skip
    weight_decay: float = option(5e-4, "Weight decay.", flag="--teacher-weight-decay", least=0, most=1)
    label_smoothing: float = option(0.1, "Label smoothing.", flag="--teacher-label-smoothing", least=0, most=0.9)
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


@dataclass(frozen=True)
class DistillConfig:
    """The student and how it learns: loss = alpha * KD + beta * hint + gamma * CE."""

    student: str = option(
        "lite",
        "Student: " + "; ".join(f"{name}, {spec.note}" for name, spec in STUDENTS.items()) + ".",
        flag="--student",
        choices=tuple(STUDENTS),
    )
    method: str = option(
        "selective",
        "How the student learns: " + "; ".join(f"{name}, {method.note}" for name, method in METHODS.items()) + ".",
        flag="--method",
        choices=tuple(METHODS),
    )
    recipe: str = option(
        "kdedge",
        "Training recipe, refined by other options: kdedge (the defaults) or source (that of the method's source).",
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
        "Images per step.",
        flag="--distill-batch-size",
        least=0,
        most=4096,
        auto="128, fewer for less than 6,400 images",
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
        "Initial weights: whitening (first convolution whitens patches, the others start as identities) or random.",
        flag="--init",
        choices=("whitening", "random"),
    )
    weights: str = option(
        "",
        "Initial weights from student.safetensors of a run with the same --student and classes. Several files, "
        "comma-separated, are averaged.",
        flag="--student-weights",
        parse=parse_paths,
    )
    norm_bias_lr: float = option(
        64.0, "Learning rate of batch-norm biases, in multiples of --lr.", flag="--norm-bias-lr", least=0.01, most=1000
    )
    refresh_norms: bool = option(
        True, "Recompute batch-norm statistics after each epoch, on training images.",
        flag="--refresh-norms",
    )  # fmt: skip
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
    drop_hints: bool = option(
        True,
        "Reduce or drop the hints of a weak teacher, and end hints and KD once the student is better than the teacher.",
        flag="--drop-hints",
    )
    hint_loss: str = option(
        "normalised",
        f"Hint loss: normalised (unexplained variance, beta relative to {BETA_UNIT:g}) or raw (MSE, beta as given).",
        flag="--hint-loss",
        choices=("normalised", "raw"),
    )
    hint_layers: int = option(
        3,
        "Number of teacher blocks with hints. The methods static and adaptive use the stage ends, all uses all blocks.",
        flag="--hint-layers",
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
    shift: int = option(2, "Random shift of the student's images in pixels.", flag="--shift", least=0, most=16)
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
    def hint_only_epochs(self) -> int:
        """Epochs at the start that train only the hint term."""
        if self.hint_epochs >= 0:
            return self.hint_epochs
        return METHODS[self.method].hint_epochs


@dataclass(frozen=True)
class ExportConfig:
    """The ONNX export."""

    opset: int = option(
        18, "ONNX opset: 18 needs onnxruntime 1.14 or newer, 20 needs 1.17.", flag="--opset", least=18, most=20
    )


@dataclass(frozen=True)
class QuantizeConfig:
    """INT8 quantization after training."""

    calibration_images: int = option(
        512, "Number of training images for calibration.", flag="--calibration-images", least=16, most=100_000
    )
    target: str = option(
        "portable",
        "CPUs to support: portable (all), x64-vnni, x64-avx2 or arm64.",
        flag="--target",
        choices=("portable", "x64-vnni", "x64-avx2", "arm64"),
    )
    compare_formats: bool = option(
        True, "Also measure formats and calibration sizes that the target rules out.", flag="--compare-formats"
    )
    qat: bool = option(False, "Fine-tune in INT8 if no cheaper repair passes the gate.", flag="--qat")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Accuracy, gate and latency."""

    limit_pp: float = option(
        0.5, "Gate: maximum accepted INT8 accuracy loss, in percentage points.", flag="--limit-pp", least=0.01, most=100
    )
    threads: str = option(
        "1",
        "Intra-op thread counts to measure, comma-separated.",
        flag="--latency-threads",
        parse=partial(parse_counts, most=1024),
    )
    batches: str = option(
        "1,8,32",
        "Batch sizes to measure, comma-separated.",
        flag="--latency-batches",
        parse=partial(parse_counts, most=4096),
    )
    seconds: float = option(
        3.0,
        "Measuring time per model, batch and thread count, in five windows.",
        flag="--latency-seconds",
        least=0.05,
        most=600,
    )
    spinning: bool = option(False, "Let waiting threads spin.", flag="--latency-spinning")
    affinity: str = option(
        "", "Measure latency and memory only on these CPUs, such as 0,2-3.", flag="--affinity", parse=parse_cpus
    )
    memory_limit: int = option(
        0,
        "Memory limit in MiB within which a new process must load and run the model (0 = no test).",
        flag="--memory-limit",
        least=0,
    )
    emulate: str = option(
        "",
        "Also run INT8 under qemu as these CPUs, comma-separated: haswell, cortex-a76, cortex-a72.",
        flag="--emulate",
        parse=parse_emulated,
    )
    emulate_images: int = option(200, "Number of test images for each emulated CPU.", flag="--emulate-images", least=1)
    beside: str = option(
        "",
        "Other runs, benchmarks or bundles to compare with this one in the report, comma-separated.",
        flag="--beside",
        parse=parse_paths,
    )


@dataclass(frozen=True)
class BundleConfig:
    """What is shipped."""

    allow_undecided: bool = option(
        False, "Write the bundle although the test images are too few to decide the gate.", flag="--allow-undecided"
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


@dataclass(frozen=True)
class Config:
    """The whole configuration; each attribute is a table of the TOML file."""

    preset: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


SECTIONS: dict[str, Any] = {
    item.name: item.default_factory for item in dataclasses.fields(Config) if item.name != "preset"
}

"""Initial weights of a teacher: the pretrained weights of torchvision or timm, a file, or none.

They are checked before the teacher is changed. Weights that are not loaded are reported: the head for other classes, a
stem for small images. Files of torchvision are cached in the folder of torch.hub, those of timm in that of the Hugging
Face hub. No pickle is executed.
"""

import copy
import dataclasses
import itertools
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdedge.download import fetch
from kdedge.errors import InputError, KdedgeError, StageError
from kdedge.files import file_sha256, load_json
from kdedge.inputs import InputSpec, image_input
from kdedge.pipeline.config import Config
from kdedge.pipeline.models.backbone import SIGNAL_STEM, STEMS
from kdedge.pipeline.models.student_teacher import build_student_teacher
from kdedge.pipeline.models.teacher import Teacher, build_teacher, check_input, is_student, is_timm
from kdedge.pipeline.models.weights import DAMAGED, load_weights
from kdedge.pipeline.training.options import TeacherConfig
from kdedge.progress import warn

__all__ = ["Start", "check_start", "start_teacher"]

_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
# DenseNet's files are older than the rule that module names have no dots: norm.1 is now norm1.
_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
_RESNETS = ("resnet", "resnext", "wide_resnet")
_RESNET_NAMES = ("conv1.weight", *(f"layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)))
_SAME_NETWORK = "give weights of the same --teacher"


@dataclass(frozen=True)
class Start:
    """A teacher with its initial weights.

    Attributes:
        teacher: The teacher.
        stem: Its stem; see `kdedge.pipeline.models.backbone.build_backbone`.
        origin: Origin of its weights: ``none``, ``imagenet``, ``hub:<repository>`` or ``file:<sha256>``.
        title: The origin in words.
        stem_note: The reason for this stem, in words; empty if the user chose it.
        missing: Descriptions of the weights that were not loaded.
        new_head: Whether other weights were loaded and those of its head were not.
        ignored: Names in the file that are not of this network.
    """

    teacher: Teacher
    stem: str
    origin: str = "none"
    title: str = "random weights"
    stem_note: str = ""
    missing: tuple[str, ...] = ()
    new_head: bool = False
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Weights:
    origin: str
    title: str
    state: dict[str, Tensor]


def check_start(config: Config, num_classes: int, spec: InputSpec) -> None:
    """Refuse initial weights that cannot work, before any training.

    Raises:
        InputError: The teacher would stay random, or the weights are damaged or do not fill the teacher.
        StageError: Weights that --teacher-epochs 0 requires cannot be downloaded.
    """
    from kdedge.pipeline.distill.methods import METHODS

    settings = config.teacher
    pretrained = spec.kind == "image" and not is_student(settings.arch)
    random = settings.weights == "none" or (settings.weights == "auto" and not pretrained)
    if random and not settings.epochs and METHODS[config.distill.method].kd:
        raise InputError(
            f"--teacher-epochs 0 with --teacher-weights {settings.weights} leaves the teacher random: there is nothing "
            "to distill",
            "name a trained network with --teacher-weights FILE, or train with --teacher-epochs 1 or more",
        )
    if settings.weight_files or (not settings.epochs and settings.weights != "none"):
        start_teacher(settings, num_classes, spec, config.runtime.device)


def start_teacher(settings: TeacherConfig, num_classes: int, spec: InputSpec, device: str) -> Start:
    """Build a teacher and load its initial weights.

    Args:
        settings: Architecture, stem and source of the weights.
        num_classes: Number of classes.
        spec: The inputs.
        device: The device of the training; ``--teacher-stem auto`` takes a cheaper stem on a CPU.

    Raises:
        InputError: The architecture is unknown or does not support the image size, or the file does not fit; with
            ``--teacher-epochs 0`` also if a part of the teacher is not loaded.
        StageError: ``imagenet`` is required and unavailable.
    """
    file = _read(settings.weight_files[0]) if settings.weight_files else None
    signal, student = spec.kind == "signal", is_student(settings.arch)
    if student:
        _check_student(settings)
        stem, note = "none", ""
        inputs = image_input(settings.image_size, grey=spec.grey) if settings.image_size else spec
        teacher = build_student_teacher(settings.arch, num_classes, inputs)
    else:
        stem, note = _signal_stem(settings) if signal else _choose_stem(settings, spec.size, device, file)
        teacher = build_teacher(settings.arch, num_classes, stem, settings.image_size, len(spec.channels))
    check_input(teacher, settings.arch, spec)
    start = Start(teacher, stem, stem_note=note)
    if file:
        start = _load(start, file, settings.arch)
    elif settings.weights != "none" and not signal and not student:
        start = _load_pretrained(start, settings)
    if start.missing and not settings.epochs:
        raise InputError(
            f"{start.title} would leave a part of the teacher untrained, and --teacher-epochs 0 trains nothing: "
            + "; ".join(start.missing),
            "give weights for these classes and this --teacher-stem, or --teacher-epochs 1 or more",
        )
    return start


def _check_student(settings: TeacherConfig) -> None:
    """Refuse a stem and pretrained weights of a teacher that is a student of kdedge: it has neither."""
    given = {f"--teacher-stem {settings.stem}": settings.stem != "auto"}
    given["--teacher-weights imagenet"] = settings.weights == "imagenet"
    for flag in (flag for flag, wrong in given.items() if wrong):
        raise InputError(f"{flag} is not for {settings.arch}", "leave it out, or give the weights of a student")


def _read(path: Path) -> _Weights:
    state = load_weights(path)
    return _Weights(f"file:{file_sha256(path)}", str(path), state)


def _choose_stem(settings: TeacherConfig, image_size: int, device: str, file: _Weights | None) -> tuple[str, str]:
    """Return the stem (of the file, else for the image size) and its reason, empty if the user chose the stem."""
    resnet = settings.arch.startswith(_RESNETS)
    kernel = _first_kernel(file) if file and resnet else None
    if settings.stem != "auto":
        return settings.stem, ""
    small = "cifar" if device == "cuda" else "cifar-pool"
    if file and (stem := _recorded_stem(Path(file.title), settings.arch)):
        return stem, "as in the file"
    if kernel == 7:
        return "imagenet", "as in the file"
    if kernel == 3:
        if not settings.epochs:
            raise InputError(
                f"{file.title if file else ''} has a 3x3 stem, and does not record whether a 2x2 pooling follows",
                "give --teacher-stem cifar (without pooling) or cifar-pool",
            )
        return small, f"the file has a 3x3 stem, with or without pooling; taken for {device}"
    if image_size > 64 or not resnet:
        return "imagenet", f"for images of {image_size} pixels" if resnet else ""
    return small, f"for images of {image_size} pixels on {device}"


def _signal_stem(settings: TeacherConfig) -> tuple[str, str]:
    """Return the stem for signals and its reason.

    Raises:
        InputError: The user chose a stem or weights for images.
    """
    if settings.stem != "auto" or settings.weights == "imagenet":
        raise InputError(
            "ImageNet weights and the stems of --teacher-stem are for images, and the data are signals",
            "leave out --teacher-stem, and give --teacher-weights none or the file of another run",
        )
    return SIGNAL_STEM, "convolutions along time"


def _first_kernel(file: _Weights) -> int | None:
    """Return the side length of a ResNet's first convolution; None if the file has no such convolution.

    Raises:
        InputError: No stem of a teacher has this first convolution.
    """
    weight = file.state.get(_prefix(file, _RESNET_NAMES) + "conv1.weight")
    if weight is None or weight.ndim != 4:
        return None
    if tuple(weight.shape[1:]) not in ((3, 3, 3), (3, 7, 7)):
        channels, *sides = weight.shape[1:]
        raise InputError(
            f"{file.title}: its first convolution is {'x'.join(map(str, sides))} on {channels} channels, "
            "expected 7x7 (--teacher-stem imagenet) or 3x3 (cifar, cifar-pool) on 3",
            "give the weights of a ResNet with one of these stems",
        )
    return weight.shape[-1]


def _recorded_stem(path: Path, arch: str) -> str:
    """Return the stem that kdedge recorded next to a teacher it trained; empty if there is no record."""
    note = path.with_name("teacher.json")
    if path.name != "teacher.safetensors" or not note.is_file():
        return ""
    known = load_json(note, ("arch", "stem"))
    return known["stem"] if known["arch"] == arch and known["stem"] in STEMS else ""


def _load_pretrained(start: Start, settings: TeacherConfig) -> Start:
    """Load the pretrained weights of torchvision or timm; with ``auto`` return ``start`` unchanged if that fails."""
    timm = is_timm(settings.arch)
    title = f"{'pretrained' if timm else 'ImageNet'} weights of {settings.arch}"
    try:
        weights = _timm_weights(settings.arch) if timm else _Weights("imagenet", title, _imagenet_state(settings.arch))
        return _load(start, weights, settings.arch)
    except (KdedgeError, OSError, *DAMAGED) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"{title} are unavailable: {why}"
        if settings.weights == "imagenet" or not settings.epochs:
            hint = error.hint if isinstance(error, StageError) and error.hint else "check the network"
            raise StageError(reason, f"{hint}, or give --teacher-weights FILE or none") from error
        warn(f"{reason}; training the teacher from random weights")
        return start


def _timm_weights(arch: str) -> _Weights:
    """Return the pretrained weights of a classifier of timm, from the hub's cache or the network."""
    from kdedge.pipeline.models.timm_teacher import fetch_pretrained

    repository, path = fetch_pretrained(arch)
    return _Weights(f"hub:{repository}", f"the pretrained weights {repository}", load_weights(path))


def _imagenet_state(arch: str) -> dict[str, Tensor]:
    """Return torchvision's default ImageNet weights of an architecture, from torch.hub's cache or the network."""
    import torchvision

    url: str = torchvision.models.get_model_weights(arch).DEFAULT.url
    name = url.rpartition("/")[2]
    known = _HASH.search(name)
    if known is None:
        raise StageError(f"{url} has no hash in its name, so the file cannot be checked")
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    fetch(url, path, known[1])
    return load_weights(path)


def _load(start: Start, weights: _Weights, arch: str) -> Start:
    """Return ``start`` with a copy of its teacher that has these weights.

    A head of another shape becomes zero: with random weights, its gradients would damage the loaded ones. A ResNet's
    first convolution of another stem stays random. Missing counters of batch norms stay zero, as PyTorch does for old
    files.

    Raises:
        InputError: The weights are of another network.
    """
    teacher = copy.deepcopy(start.teacher)
    own: Any = teacher.backbone.state_dict()
    prefix = _prefix(weights, own)
    found = {
        _DENSENET.sub(r"\1", name.removeprefix(prefix)): value
        for name, value in weights.state.items()
        if name.startswith(prefix)
    }
    heads, first = tuple(f"{layer}." for layer in teacher.head), "conv1.weight"
    kept = [name for name in own if name.startswith(heads)]
    # Auxiliary heads are for training only and are not built here.
    unused = ["aux", "Aux"]
    new_head = not all(name in found and _fits(found[name], own[name]) for name in kept)
    if new_head:
        unused += heads
    else:
        kept = []
    if arch.startswith(_RESNETS) and first in found and found[first].shape != own[first].shape:
        kept.insert(0, first)
        unused.append(first)
    complete: Any = OrderedDict((n, own[n]) for n in own if n in kept or n.endswith(".num_batches_tracked"))
    complete |= {name: torch.zeros_like(own[name]) for name in kept if name.startswith(heads)}
    complete |= {name: value for name, value in found.items() if not name.startswith(tuple(unused))}
    # Versions of modules, from which PyTorch derives renamed parameters.
    complete._metadata = own._metadata if prefix else getattr(weights.state, "_metadata", own._metadata)
    wrong = [name for name, value in complete.items() if name in own and not _fits(value, own[name])]
    if not wrong:
        try:
            wrong = list(itertools.chain(*teacher.backbone.load_state_dict(complete, strict=False)))
        except DAMAGED as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{weights.title} does not fit a {arch} teacher: {reason}", _SAME_NETWORK) from error
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"{weights.title} does not fit a {arch} teacher: {wrong[0]} is {_shape(found, wrong[0])}, "
            f"expected {_shape(own, wrong[0])}{more}",
            _SAME_NETWORK,
        )
    ignored = []
    for name, value in weights.state.items():
        if name in ("mean", "std") and prefix and _fits(value, teacher.get_buffer(name)):
            teacher.get_buffer(name).copy_(value)  # the normalisation of a kdedge teacher
        elif not name.startswith(prefix):
            ignored.append(name)
    return dataclasses.replace(
        start,
        teacher=teacher,
        origin=weights.origin,
        title=weights.title,
        missing=tuple(f"{name} is {_shape(own, name)}, in the weights {_shape(found, name)}" for name in kept),
        new_head=new_head,
        ignored=tuple(ignored),
    )


def _prefix(weights: _Weights, names: Collection[str]) -> str:
    """Return the prefix of the names of a network in a file: ``module.``, ``model.``, … or empty.

    Raises:
        InputError: The file has several such networks.
    """
    prefixes = Counter(
        name[:place]
        for name in weights.state
        for place in [0, *(match.end() for match in re.finditer(r"\.", name))]
        if name[place:] in names
    )
    (first, most), (second, next_most) = [*prefixes.most_common(2), ("", 0), ("", 0)][:2]
    if most and most == next_most:
        raise InputError(
            f"{weights.title} has several networks: names begin with {first!r} and with {second!r}",
            "save the state dict of one of them",
        )
    return first


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    if name not in state:
        return "nothing"
    kind = "" if state[name].is_floating_point() else f" {state[name].dtype}"
    return f"{tuple(state[name].shape)}{kind}"

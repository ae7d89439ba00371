"""The teacher: a classifier of torchvision, timm or kdedge that prepares its input, with feature maps for hints.

`Teacher` takes pixels/255 of any size; the mean and deviation of its backbone's training are buffers of the module.
`FeatureTap` captures the feature maps for hints.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from kdedge.errors import InputError
from kdedge.inputs import InputSpec, image_input
from kdedge.parsing import closest
from kdedge.pipeline.models.backbone import SIGNAL_STEM, backbone_blocks, build_backbone
from kdedge.pipeline.models.registry import STUDENTS

__all__ = [
    "STUDENT_PREFIX",
    "FeatureTap",
    "Teacher",
    "build_teacher",
    "check_arch",
    "check_input",
    "fold_batch_norms",
    "hint_candidates",
    "is_student",
    "is_timm",
    "taking_inputs",
]

STUDENT_PREFIX = "kdedge/"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Teacher(nn.Module):
    """A classifier on pixels in 0..1: resizes and normalises them for its backbone, then runs the backbone.

    Args:
        backbone: Returns logits for normalised images.
        blocks: Modules of the backbone whose maps ``[N, C, H, W]`` hints can use, by name, in depth order.
        before_relu: Whether the map of a block is the input of its last ``relu``, else its output.
        head: Layers of the backbone that depend on the classes; by default the last one.
        mean: Mean of the images on which the backbone was trained, per channel.
        std: Their standard deviation.
        image_size: Side length in pixels to which images are resized (0: they are not).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        blocks: tuple[str, ...] = (),
        before_relu: bool = False,
        head: tuple[str, ...] = (),
        mean: Sequence[float] = _IMAGENET_MEAN,
        std: Sequence[float] = _IMAGENET_STD,
        image_size: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.blocks = blocks
        self.before_relu = before_relu
        self.head = head or (list(backbone.state_dict())[-1].rpartition(".")[0],)
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, num_classes]`` for ``x`` float32 ``[N, C, H, W]``; a grey channel is repeated."""
        if self.image_size not in (0, x.shape[-1]):
            x = functional.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        logits: Tensor = self.backbone((x - self.mean) / self.std)
        return logits


def build_teacher(arch: str, num_classes: int, stem: str, image_size: int = 0, channels: int = 3) -> Teacher:
    """Build a classifier of torchvision or timm with random weights.

    Args:
        arch: Name in ``torchvision.models``, or ``timm/NAME``.
        num_classes: Number of classes.
        stem: As for `kdedge.pipeline.models.backbone.build_backbone`.
        image_size: Side length in pixels to which images are resized. 0: for a classifier of timm its own, for others
            they are not resized.
        channels: Channels of its input.

    Raises:
        InputError: The architecture is unknown or does not support the stem or the image size.
    """
    check_arch(arch)
    if is_timm(arch):
        from kdedge.pipeline.models.timm_teacher import build_timm_teacher

        if stem != "imagenet":
            raise InputError(f"--teacher-stem {stem} is not for {arch}", "leave out --teacher-stem")
        return build_timm_teacher(arch, num_classes, image_size)
    import torchvision

    backbone = build_backbone(arch, num_classes, stem, channels)
    for module in backbone.modules():
        # An in-place ReLU would overwrite the maps that a hook has captured.
        if isinstance(module, nn.ReLU):
            module.inplace = False
    residual = isinstance(backbone, torchvision.models.ResNet)
    # Windows are already normalised.
    mean, std = ((0.0,), (1.0,)) if stem == SIGNAL_STEM else (_IMAGENET_MEAN, _IMAGENET_STD)
    blocks = tuple(backbone_blocks(backbone))
    return Teacher(backbone, blocks=blocks, before_relu=residual, mean=mean, std=std, image_size=image_size)


def is_timm(arch: str) -> bool:
    """Return whether an architecture is one of timm."""
    return arch.startswith("timm/")


def is_student(arch: str) -> bool:
    """Return whether an architecture is a student of kdedge."""
    return arch.startswith(STUDENT_PREFIX)


def check_arch(arch: str) -> None:
    """Refuse an unknown classifier.

    Raises:
        InputError: The name is unknown.
    """
    if is_timm(arch):
        from kdedge.pipeline.models.timm_teacher import check_timm_arch

        check_timm_arch(arch)
        return
    if is_student(arch):
        name = arch.removeprefix(STUDENT_PREFIX)
        if name not in STUDENTS:
            known = ", ".join(f"{STUDENT_PREFIX}{student}" for student in STUDENTS)
            raise InputError(f"unknown teacher {arch!r}{closest(name, STUDENTS)}", f"the students are {known}")
        return
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if arch not in names:
        raise InputError(
            f"unknown teacher {arch!r}{closest(arch, names)}",
            "--teacher takes any torchvision classifier (resnet18, mobilenet_v3_small, …), one of timm as timm/NAME, "
            f"or a student of kdedge as {STUDENT_PREFIX}NAME",
        )


@contextlib.contextmanager
def taking_inputs(arch: str, spec: InputSpec) -> Iterator[None]:
    """Raise the error of a forward pass on inputs of a size that the architecture does not support as InputError."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--teacher {arch} cannot take {spec.words}: {reason}",
            "give another --teacher-image-size, to which the teacher resizes its images, or take another --teacher"
            if spec.kind == "image"
            else "raise --window, or take another --teacher",
        ) from error


def check_input(teacher: Teacher, arch: str, spec: InputSpec) -> None:
    """Refuse a teacher that does not support the size of the inputs, before any of them is read.

    Raises:
        InputError: A forward pass on two inputs of zeros fails.
    """
    was_training = teacher.training
    size = teacher.image_size or spec.size
    with taking_inputs(arch, image_input(size) if spec.kind == "image" else spec), torch.no_grad():
        teacher.eval()(torch.zeros(2, *spec.core_shape))
    teacher.train(was_training)


def hint_candidates(teacher: Teacher) -> dict[str, nn.Module]:
    """Return the modules whose maps hints can use, in depth order, by name."""
    return {name: teacher.backbone.get_submodule(name) for name in teacher.blocks}


@torch.no_grad()
def fold_batch_norms(teacher: Teacher, spec: InputSpec) -> Teacher:
    """Return a copy of a teacher in eval mode whose batch norms are folded into the convolutions before them.

    A frozen teacher runs on every batch of a distillation, and its batch norms only cost time. Folding pairs a
    convolution with the batch norm registered right after it. If an architecture calls them in another order, the
    outputs differ and the teacher is returned unchanged.

    Args:
        teacher: In eval mode, on the CPU, where fp32 outputs differ by rounding only.
        spec: The inputs on which the outputs are compared.
    """
    folded = copy.deepcopy(teacher)
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                if conv.out_channels != norm.num_features:
                    return teacher
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))  # those of timm have an activation
    shape = (2, *spec.core_shape)
    pixels = torch.linspace(0, 1, math.prod(shape)).reshape(shape)
    expected, found = teacher(pixels), folded(pixels)
    return folded if torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()) else teacher


class _DeepestReachedError(Exception):
    """Ends a forward pass after the deepest captured map."""


class FeatureTap:
    """Captures feature maps of a running teacher, as a context manager that removes its hooks.

    The map of torchvision's residual blocks is the sum before the last ReLU, that of others their output.

    Args:
        teacher: The teacher.
        names: Names from `hint_candidates`.

    Raises:
        InputError: A name is unknown.
    """

    def __init__(self, teacher: Teacher, names: tuple[str, ...]) -> None:
        candidates = hint_candidates(teacher)
        unknown = [name for name in names if name not in candidates]
        if unknown:
            raise InputError(f"the teacher has no block {unknown[0]!r}; it has {', '.join(candidates)}")
        self._teacher = teacher
        self._modules = {name: module for name, module in candidates.items() if name in names}
        self._maps_only = False
        self._handles: list[RemovableHandle] = []
        self.maps: dict[str, Tensor] = {}

    def __enter__(self) -> "FeatureTap":
        for name, module in self._modules.items():
            if self._teacher.before_relu:
                # The block calls one ReLU several times; the last call overwrites the earlier captures.
                self._handles.append(module.get_submodule("relu").register_forward_pre_hook(self._on_input(name)))
            else:
                self._handles.append(module.register_forward_hook(self._on_output(name)))
        if self._modules:
            self._handles.append(list(self._modules.values())[-1].register_forward_hook(self._after_deepest))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.maps = {}

    def run_to_deepest(self, pixels: Tensor) -> None:
        """Fill `maps` for ``pixels`` float32 ``[N, C, H, W]`` in 0..1, without the layers after the deepest block."""
        self._maps_only = True
        with contextlib.suppress(_DeepestReachedError):
            self._teacher(pixels)
        self._maps_only = False

    def _after_deepest(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._maps_only:
            raise _DeepestReachedError

    def _on_input(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.maps[name] = args[0]

        return keep

    def _on_output(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.maps[name] = output.clone()  # a DenseNet rectifies its last map in place

        return keep

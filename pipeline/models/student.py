"""The students: ResNet-Lite (five 3x3 convolutions, batch norm, ReLU, max-pooling, one linear layer) and torchvision's.

Those for signals have 1x5 convolutions on maps of height 1: onnxruntime's Conv1d is slower in FP32 (onnxruntime
issue 16047), which would flatter INT8.

Every operator has an integer kernel in onnxruntime once quantized (`nn.AvgPool2d` with a fixed kernel exports as
AveragePool; an adaptive one exports as ReduceMean, which stays float). Pixels enter as value/255 without mean
subtraction, so uint8 pixels are an exact quantization of the input.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdedge.errors import InputError
from kdedge.inputs import InputSpec
from kdedge.pipeline.models.backbone import backbone_blocks, build_backbone
from kdedge.pipeline.models.registry import STUDENTS, LiteSpec, ResidualSpec, TorchvisionSpec
from kdedge.pipeline.models.residual import residual_blocks

__all__ = ["Block", "Student", "build_lite", "build_residual", "build_student"]

_LARGE_IMAGE = 64  # pixels; from here on the first convolution halves the image
_LONG_WINDOW = 256  # samples; from here on the first convolution halves the window
_SIGNAL_KERNEL = 5


class Block(nn.Module):
    """3x3 convolution, batch norm, ReLU, then an optional residual add and an optional max-pool; or all along time."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, residual: bool, pool: int, signal: bool = False
    ) -> None:
        super().__init__()
        height, width = (1, _SIGNAL_KERNEL) if signal else (3, 3)
        along = (1, stride) if signal else stride
        padding = (height // 2, width // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride=along, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d((1, pool) if signal else pool) if pool > 1 else nn.Identity()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``."""
        out: Tensor = self.norm(self.conv(x))
        if self.residual:
            out = self.pool(self.relu(out) + x)
        elif self.training:
            # Equal to the line below; the ReLU of the smaller map saves a tenth of a training step.
            out = self.relu(self.pool(out))
        else:
            out = self.pool(self.relu(out))
        return out


class Student(nn.Module):
    """A classifier with accessible blocks for hints.

    Args:
        stem: The module before the blocks.
        blocks: Each maps the output of the previous one.
        side: Side length of the last map, or its height and width.
        classifier: The linear layer behind the pooling.
    """

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], side: int | tuple[int, int], classifier: nn.Linear
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.AvgPool2d(side)
        self.classifier = classifier

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the blocks for ``x`` float32 ``[N, C, H, W]``, normalised."""
        maps = []
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def classify(self, last: Tensor) -> Tensor:
        """Return logits ``[N, num_classes]`` from the output of the last block."""
        logits: Tensor = self.classifier(self.pool(last).flatten(1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, num_classes]`` for ``x`` float32 ``[N, C, H, W]``, normalised."""
        return self.classify(self.features(x)[-1])


def build_student(name: str, num_classes: int, inputs: InputSpec, widths: tuple[int, ...] = ()) -> Student:
    """Build a registered student with random weights, a pruned one of five convolutions with its own widths.

    Raises:
        InputError: The name is unknown, or the student is for other inputs.
    """
    if name not in STUDENTS:
        known = "; ".join(f"{key} ({spec.note})" for key, spec in STUDENTS.items())
        raise InputError(f"unknown student {name!r}", f"--student is one of: {known}")
    spec = STUDENTS[name]
    if spec.signal != (inputs.kind == "signal"):
        fitting = [key for key, other in STUDENTS.items() if other.signal != spec.signal]
        raise InputError(f"--student {name} is not for {inputs.kind}s", f"use --student {' or '.join(fitting)}")
    if isinstance(spec, LiteSpec):
        return build_lite(dataclasses.replace(spec, widths=widths or spec.widths), num_classes, inputs)
    if isinstance(spec, ResidualSpec):
        return build_residual(spec, num_classes, inputs)
    return _build_torchvision(spec, num_classes, inputs)


def build_lite(spec: LiteSpec, num_classes: int, inputs: InputSpec) -> Student:
    """Build a student of five convolutions.

    Images of 64 pixels and more are halved by a stride in the first convolution, from 128 pixels on also by a
    max-pool after it, so that the cost stays in the range of the 32-pixel network. So are windows, from 256 and 512
    samples on.

    Args:
        spec: Widths and wiring.
        num_classes: Number of classes, at least 2.
        inputs: The inputs: images of at least 16 pixels, or windows of at least 16 samples.
    """
    blocks = []
    channels, size = len(inputs.channels), inputs.size
    large = _LONG_WINDOW if spec.signal else _LARGE_IMAGE
    for index, width in enumerate(spec.widths):
        stride = 2 if index == 0 and inputs.size >= large else 1
        pool = 2 if index in spec.pool_after else 1
        if index == 0 and inputs.size >= 2 * large:
            pool *= 2
        residual = index in spec.residual
        blocks.append(Block(channels, width, stride=stride, residual=residual, pool=pool, signal=spec.signal))
        channels, size = width, -(-size // stride) // pool
    side = (1, size) if spec.signal else size
    return Student(nn.Identity(), blocks, side, nn.Linear(channels, num_classes))


def build_residual(spec: ResidualSpec, num_classes: int, inputs: InputSpec) -> Student:
    """Build a student of residual blocks; its stem halves large images as the first block of `build_lite` does.

    Args:
        spec: Widths, depths and form of the layers.
        num_classes: Number of classes, at least 2.
        inputs: Images of at least 16 pixels.
    """
    stride = 2 if inputs.size >= _LARGE_IMAGE else 1
    pool = 2 if inputs.size >= 2 * _LARGE_IMAGE else 1
    stem = Block(len(inputs.channels), spec.widths[0], stride=stride, residual=False, pool=pool)
    side = -(-inputs.size // stride) // pool
    for _ in spec.widths[1:]:
        side = -(-side // 2)
    return Student(stem, residual_blocks(spec), side, nn.Linear(spec.widths[-1], num_classes))


def _build_torchvision(spec: TorchvisionSpec, num_classes: int, inputs: InputSpec) -> Student:
    """Build a student from the stem, blocks and linear layer of a torchvision classifier.

    Its adaptive pooling is replaced. Dropout before the linear layer is left out: checkpoints do not have the state of
    its random generator, so a resumed run would end with other weights.
    """
    stem = spec.small_stem if inputs.size < _LARGE_IMAGE else "imagenet"
    backbone: Any = build_backbone(spec.arch, num_classes, stem)
    if inputs.grey:
        first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
        first.weight, first.in_channels = nn.Parameter(first.weight.sum(1, keepdim=True)), 1
    before: nn.Module = nn.Identity()
    if hasattr(backbone, "conv1"):
        before = nn.Sequential(
            OrderedDict(conv=backbone.conv1, norm=backbone.bn1, relu=backbone.relu, pool=backbone.maxpool)
        )
    blocks = list(backbone_blocks(backbone).values())
    classifier = [module for module in backbone.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        side = nn.Sequential(before, *blocks).eval()(torch.zeros(1, *inputs.core_shape)).shape[-1]
    return Student(before, blocks, side, classifier).train()

"""The students: ResNet-Lite (five 3x3 convolutions, batch norm, ReLU, max-pooling, one linear layer) and torchvision's.

Every operator has an integer kernel in onnxruntime once quantized (`nn.AvgPool2d` with a fixed kernel exports as
AveragePool; an adaptive one exports as ReduceMean, which stays float). Pixels enter as value/255 without mean
subtraction, so uint8 pixels are an exact quantization of the input.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdedge.errors import InputError
from kdedge.pipeline.models.backbone import backbone_blocks, build_backbone
from kdedge.pipeline.models.registry import STUDENTS, LiteSpec, TorchvisionSpec

__all__ = ["Block", "Student", "build_lite", "build_student"]

_LARGE_IMAGE = 64  # pixels; from here on the first convolution halves the image


class Block(nn.Module):
    """3x3 convolution, batch norm, ReLU, then an optional residual add and an optional 2x2 max-pool."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, residual: bool, pool: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
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
        side: Side length of the last map in pixels.
        classifier: The linear layer behind the pooling.
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], side: int, classifier: nn.Linear) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.AvgPool2d(side)
        self.classifier = classifier

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the blocks for ``x`` float32 ``[N, 3, S, S]`` in 0..1."""
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
        """Return logits ``[N, num_classes]`` for ``x`` float32 ``[N, 3, S, S]`` in 0..1."""
        return self.classify(self.features(x)[-1])


def build_student(name: str, num_classes: int, image_size: int) -> Student:
    """Build a registered student with random weights.

    Raises:
        InputError: The name is unknown.
    """
    if name not in STUDENTS:
        known = "; ".join(f"{key} ({spec.note})" for key, spec in STUDENTS.items())
        raise InputError(f"unknown student {name!r}", f"--student is one of: {known}")
    spec = STUDENTS[name]
    if isinstance(spec, LiteSpec):
        return build_lite(spec, num_classes, image_size)
    return _build_torchvision(spec, num_classes, image_size)


def build_lite(spec: LiteSpec, num_classes: int, image_size: int) -> Student:
    """Build a student of five convolutions.

    Images of 64 pixels and more are halved by a stride in the first convolution, from 128 pixels on also by a
    max-pool after it, so that the cost stays in the range of the 32-pixel network.

    Args:
        spec: Widths and wiring.
        num_classes: Number of classes, at least 2.
        image_size: Side length S of the square input in pixels, at least 16.
    """
    blocks = []
    channels, size = 3, image_size
    for index, width in enumerate(spec.widths):
        stride = 2 if index == 0 and image_size >= _LARGE_IMAGE else 1
        pool = 2 if index in spec.pool_after else 1
        if index == 0 and image_size >= 2 * _LARGE_IMAGE:
            pool *= 2
        blocks.append(Block(channels, width, stride=stride, residual=index in spec.residual, pool=pool))
        channels, size = width, -(-size // stride) // pool
    return Student(nn.Identity(), blocks, size, nn.Linear(channels, num_classes))


def _build_torchvision(spec: TorchvisionSpec, num_classes: int, image_size: int) -> Student:
    """Build a student from the stem, blocks and linear layer of a torchvision classifier.

    Its adaptive pooling is replaced. Dropout before the linear layer is left out: checkpoints do not have the state of
    its random generator, so a resumed run would end with other weights.
    """
    stem = spec.small_stem if image_size < _LARGE_IMAGE else "imagenet"
    backbone: Any = build_backbone(spec.arch, num_classes, stem)
    before: nn.Module = nn.Identity()
    if hasattr(backbone, "conv1"):
        before = nn.Sequential(
            OrderedDict(conv=backbone.conv1, norm=backbone.bn1, relu=backbone.relu, pool=backbone.maxpool)
        )
    blocks = list(backbone_blocks(backbone).values())
    classifier = [module for module in backbone.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        side = nn.Sequential(before, *blocks).eval()(torch.zeros(1, 3, image_size, image_size)).shape[-1]
    return Student(before, blocks, side, classifier).train()

"""ResNet-Lite, the student: five 3x3 convolutions, batch norm, ReLU, max-pooling, one linear layer.

Every operator has an integer kernel in onnxruntime once quantized (`nn.AvgPool2d` with a fixed kernel exports as
AveragePool; an adaptive one exports as ReduceMean, which stays float). Pixels enter as value/255 without mean
subtraction, so uint8 pixels are an exact quantization of the input.
"""

from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.registry import STUDENTS, StudentSpec

__all__ = ["Block", "Student", "build_student"]


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
        out: Tensor = self.relu(self.norm(self.conv(x)))
        if self.residual:
            out = out + x
        out = self.pool(out)
        return out


class Student(nn.Module):
    """A five-convolution classifier.

    Images of 64 pixels and more are halved by a stride in the first convolution, from 128 pixels on also by a
    max-pool after it, so that the cost stays in the range of the 32-pixel network.

    Args:
        spec: Widths and wiring.
        num_classes: Number of classes, at least 2.
        image_size: Side length S of the square input in pixels, at least 16.
    """

    def __init__(self, spec: StudentSpec, num_classes: int, image_size: int) -> None:
        super().__init__()
        blocks = []
        channels, size = 3, image_size
        for index, width in enumerate(spec.widths):
            stride = 2 if index == 0 and image_size >= 64 else 1
            pool = 2 if index in spec.pool_after else 1
            if index == 0 and image_size >= 128:
                pool *= 2
            blocks.append(Block(channels, width, stride=stride, residual=index in spec.residual, pool=pool))
            channels, size = width, -(-size // stride) // pool
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.AvgPool2d(size)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the five blocks for ``x`` float32 ``[N, 3, S, S]`` in 0..1."""
        maps = []
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
        InputError: There is no student of that name.
    """
    if name not in STUDENTS:
        known = "; ".join(f"{key} ({spec.note})" for key, spec in STUDENTS.items())
        raise InputError(f"unknown student {name!r}", f"--student is one of: {known}")
    return Student(STUDENTS[name], num_classes, image_size)

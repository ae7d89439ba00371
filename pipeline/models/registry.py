"""The registered students. This module imports no PyTorch, so that the command line can list them."""

from dataclasses import dataclass

__all__ = ["STUDENTS", "LiteSpec", "ResidualSpec", "TorchvisionSpec", "prunable_widths"]


@dataclass(frozen=True)
class LiteSpec:
    """A student of five convolutions.

    Attributes:
        widths: Output channels of the five convolutions.
        pool_after: Indices (0-4) of the blocks that end with a 2x2 max-pool.
        residual: Indices of the blocks that add their input to their output (same width, no shortcut convolution).
        note: Its size at 32 pixels and 10 classes, or for 6 channels, 128 samples and 6 classes.
        signal: Whether it is for windows of a signal, with 1x5 convolutions and pools along time.
    """

    widths: tuple[int, ...]
    pool_after: tuple[int, ...]
    residual: tuple[int, ...]
    note: str
    signal: bool = False


@dataclass(frozen=True)
class ResidualSpec:
    """A student of residual blocks in stages, of which each but the first halves the map.

    Attributes:
        widths: Output channels of the stages.
        depths: Blocks of the stages.
        layer: The form of a 3x3 convolution: ``full``, ``blueprint`` or ``depthwise``.
        note: Its size at 32 pixels and 10 classes.
        signal: Whether it is for windows of a signal: none is.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    layer: str
    note: str
    signal: bool = False


@dataclass(frozen=True)
class TorchvisionSpec:
    """A classifier of torchvision as a student.

    Attributes:
        arch: Name in ``torchvision.models``.
        small_stem: The stem for images below 64 pixels (see `kdedge.pipeline.models.backbone.build_backbone`).
        note: Its size at 32 pixels and 10 classes.
        signal: Whether it is for windows of a signal: none is.
    """

    arch: str
    small_stem: str
    note: str
    signal: bool = False


STUDENTS: dict[str, LiteSpec | ResidualSpec | TorchvisionSpec] = {
    "lite": LiteSpec((32, 64, 128, 256, 384), (1, 2, 3), (), "1.28 M parameters, 72 MMAC"),
    "lite-s": LiteSpec((24, 48, 80, 128, 160), (1, 2, 3), (), "0.32 M parameters, 29 MMAC"),
    "lite-xs": LiteSpec((16, 32, 48, 64, 80), (0, 1, 2), (), "0.09 M parameters, 4 MMAC"),
    "res": ResidualSpec((32, 80, 144), (1, 2, 2), "full", "0.90 M parameters, 114 MMAC"),
    "res-s": ResidualSpec((16, 48, 80), (2, 2, 2), "full", "0.29 M parameters, 41 MMAC"),
    "res-xs": ResidualSpec((32, 64, 112), (2, 2, 2), "depthwise", "0.08 M parameters, 15 MMAC"),
    "mobilenet_v2": TorchvisionSpec("mobilenet_v2", "cifar", "2.24 M parameters, 88 MMAC"),
    "signal": LiteSpec((32, 64, 96, 128, 128), (0, 1, 2), (), "for signals, 0.19 M parameters, 4 MMAC", signal=True),
    "signal-s": LiteSpec((16, 32, 48, 64, 64), (0, 1, 2), (), "for signals, 0.05 M parameters, 1 MMAC", signal=True),
    "resnet18": TorchvisionSpec("resnet18", "cifar-pool", "11.17 M parameters, 140 MMAC"),
}


def prunable_widths(name: str) -> tuple[int, ...]:
    """Return the widths of a registered student of five convolutions, which can be pruned; empty for any other."""
    spec = STUDENTS[name]
    return spec.widths if isinstance(spec, LiteSpec) and not spec.residual else ()

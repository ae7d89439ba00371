"""The students to choose from. Imports no PyTorch, so that the command line can list them."""

from dataclasses import dataclass

__all__ = ["STUDENTS", "StudentSpec"]


@dataclass(frozen=True)
class StudentSpec:
    """Shape of a student.

    Attributes:
        widths: Output channels of the five convolutions.
        pool_after: Indices (0-4) of the blocks that end with a 2x2 max-pool.
        residual: Indices of the blocks that add their input to their output (same width, no shortcut convolution).
        note: What it is for, with its size at 32 pixels and 10 classes.
    """

    widths: tuple[int, int, int, int, int]
    pool_after: tuple[int, ...]
    residual: tuple[int, ...]
    note: str


STUDENTS = {
    "lite": StudentSpec((32, 64, 128, 256, 384), (1, 2, 3), (), "1.28 M parameters, 72 MMAC"),
    "lite-s": StudentSpec((24, 48, 80, 128, 160), (1, 2, 3), (), "0.33 M parameters, 29 MMAC"),
    "lite-xs": StudentSpec((16, 32, 48, 64, 80), (0, 1, 2), (), "0.09 M parameters, 4 MMAC"),
}

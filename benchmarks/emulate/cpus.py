"""The CPUs that can be emulated."""

from dataclasses import dataclass

from kdedge.parsing import parse_choices

__all__ = ["CPUS", "Cpu", "parse_emulated"]


@dataclass(frozen=True)
class Cpu:
    """A CPU that qemu can show to a program.

    Attributes:
        qemu: The emulator's name.
        model: Argument of its ``-cpu``.
        arm64: Whether it needs the arm64 root; otherwise it runs this host's x86-64 Python.
        has: Features, by numpy's names, that the program must see.
        lacks: Features that it must not see.
        note: Why this CPU is tested.
    """

    qemu: str
    model: str
    arm64: bool
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    note: str


CPUS = {
    "haswell": Cpu(
        "qemu-x86_64", "Haswell", False, ("AVX2", "FMA3"), ("AVX512F", "AVX512VNNI"), "AVX2 without dot products"
    ),
    "cortex-a76": Cpu("qemu-aarch64", "cortex-a76", True, ("ASIMD", "ASIMDDP"), (), "arm64 with dot products"),
    "cortex-a72": Cpu("qemu-aarch64", "cortex-a72", True, ("ASIMD",), ("ASIMDDP",), "arm64 without dot products"),
}


def parse_emulated(text: str, flag: str) -> list[str]:
    """Parse a comma-separated list of CPUs to emulate; an empty text is an empty list.

    Raises:
        InputError: A part is not a key of `CPUS`.
    """
    if not text:
        return []
    return parse_choices(text, flag, tuple(CPUS))

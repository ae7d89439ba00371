"""Which number formats are right and fast on which CPUs.

What decides is how a CPU multiplies uint8 by int8. With dot-product instructions (VNNI on x86, SDOT/UDOT on arm64) the
products are summed in 32 bits. AVX2 first adds pairs of products in 16 bits, and two products of full 8-bit weights
overflow there without a word (255 * 127 * 2 > 32767); 7-bit weights (``reduce_range``) cannot. uint8 by uint8 is
widened first, exact everywhere and slow. arm64 without dot products also sums in 32 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kdedge.export.quantize.candidates import Candidate

__all__ = ["TARGETS", "Target"]

_OVERFLOW = "8-bit weights overflow in the 16-bit sums of x86 CPUs without VNNI"


@dataclass(frozen=True)
class Target:
    """A family of CPUs.

    Attributes:
        note: What it stands for, in a few words.
        host: The `kdedge.benchmarks.host.host_kind` on which latency may decide; empty: on none.
        refuses: Why a candidate is not for this target, or an empty string.
    """

    note: str
    host: str
    refuses: Callable[[Candidate], str]


def _refused_on_avx2(candidate: Candidate) -> str:
    return _OVERFLOW if candidate.overflows else ""


def _refused_as_portable(candidate: Candidate) -> str:
    if candidate.overflows:
        return _OVERFLOW
    if candidate.weights == "u8":
        return "uint8 weights have no fast kernel with VNNI"
    return "int8 activations leave operators in float where outputs fan out" if candidate.activations == "s8" else ""


def _admitted(candidate: Candidate) -> str:
    return ""


TARGETS = {
    "portable": Target("the same answers on every CPU", "", _refused_as_portable),
    "x64-vnni": Target("x86 with AVX512-VNNI or AVX-VNNI", "x64-vnni", _admitted),
    "x64-avx2": Target("x86 without VNNI", "x64-avx2", _refused_on_avx2),
    "arm64": Target("64-bit Arm, with or without dot products", "arm64", _admitted),
}

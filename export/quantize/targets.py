"""Number formats that are accurate and fast on each family of CPUs.

CPUs differ in the multiplication of uint8 by int8. Dot-product instructions (VNNI on x86, SDOT/UDOT on arm64) sum the
products in 32 bits. AVX2 first adds pairs of products in 16 bits, where two products of 8-bit weights overflow silently
(255 * 127 * 2 > 32767); products of 7-bit weights (``reduce_range``) do not. uint8 by uint8 is widened first, which is
exact everywhere and slow. arm64 without dot products also sums in 32 bits.
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
        note: Description in a few words.
        host: The `kdedge.benchmarks.host.host_kind` on which latency may decide; empty: none.
        why_unsupported: Why the target does not support a candidate, or an empty string.
    """

    note: str
    host: str
    why_unsupported: Callable[[Candidate], str]


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
    "portable": Target("the same predictions on every CPU", "", _refused_as_portable),
    "x64-vnni": Target("x86 with AVX512-VNNI or AVX-VNNI", "x64-vnni", _admitted),
    "x64-avx2": Target("x86 without VNNI", "x64-avx2", _refused_on_avx2),
    "arm64": Target("64-bit Arm, with or without dot products", "arm64", _admitted),
}

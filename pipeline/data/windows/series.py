"""Labelled series of a signal, which every format is read into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdedge.errors import InputError
from kdedge.inputs import RATE_TOLERANCE

__all__ = ["Series", "Source", "same_channels", "same_rate"]


@dataclass(frozen=True, eq=False)
class Series:
    """A recording with a label.

    Attributes:
        name: Its name, for messages and hashes.
        values: float32 ``[T, C]``.
        label: Name of its class.
        group: Series of one group are never in two parts.
        part: ``train``, ``val`` or ``test``; empty: not divided yet.
    """

    name: str
    values: NDArray[np.float32]
    label: str
    group: str
    part: str = ""


@dataclass(frozen=True, eq=False)
class Source:
    """The series of a data set.

    Attributes:
        path: The folder or file.
        series: The series.
        channels: Names of the channels.
        rate_hz: Samples per second; 0: unknown.
        is_cut: Whether the series are windows already.
    """

    path: Path
    series: list[Series]
    channels: tuple[str, ...]
    rate_hz: float
    is_cut: bool = False


def same_channels(found: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """Return the channels that all recordings have, given as (name, channels).

    Raises:
        InputError: Two recordings differ.
    """
    first, channels = found[0]
    for name, other in found:
        if other != channels:
            raise InputError(
                f"{name} has the channels {', '.join(other)}; {first} has {', '.join(channels)}",
                "give all recordings the same columns in the same order",
            )
    return channels


def same_rate(found: Sequence[tuple[str, float]], given: float) -> float:
    """Return the rate that all recordings have, given as (name, rows per second; 0: unknown).

    Raises:
        InputError: Two recordings differ, or one differs from ``--rate``.
    """
    known = [(name, rate) for name, rate in found if rate]
    expected = given or (known[0][1] if known else 0.0)
    for name, rate in known:
        if not math.isclose(rate, expected, rel_tol=RATE_TOLERANCE):
            source = "--rate is" if given else f"{known[0][0]} has"
            raise InputError(
                f"{name} has {rate:g} rows per second; {source} {expected:g}", "resample all recordings to one rate"
            )
    return float(f"{expected:.6g}")

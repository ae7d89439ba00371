"""Targets and the choice among candidates."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdedge.errors import StageError
from kdedge.export.quantize.candidates import Candidate, Score, calibrators, formats, sizes
from kdedge.export.quantize.search import Trial, _picker
from kdedge.export.quantize.targets import TARGETS


def trial(candidate: Candidate, sqnr_db: float, p50_ms: float = 1.0, rejection_reason: str = "") -> Trial:
    score = Score(90.0, 0.0, 0, 0, 0, sqnr_db, 0.0, np.ones(100, bool), np.ones(100, bool))
    return Trial(candidate, b"", {}, score, rejection_reason, p50_ms=p50_ms)


def test_names_are_unique() -> None:
    best = Candidate()
    names = [item.name for item in (*formats(512), *calibrators(best), *sizes(best, 10_000))]
    assert len(set(names)) == len(names) == 18
    assert best.name == "u8s8-channel-rr-minmax-512"


@pytest.mark.parametrize(
    ("target", "admitted"),
    [("portable", {"u8s8-tensor-rr", "u8s8-channel-rr"}), ("x64-avx2", {item.format for item in formats(512)[:6]}),
     ("x64-vnni", {item.format for item in formats(512)}), ("arm64", {item.format for item in formats(512)})],
)  # fmt: skip
def test_what_a_target_admits(target: str, admitted: set[str]) -> None:
    assert {item.format for item in formats(512) if not TARGETS[target].why_unsupported(item)} == admitted


def test_sizes_that_are_not_there_are_not_tried() -> None:
    assert [item.calibration_images for item in sizes(Candidate(), 600)] == [128]
    assert sizes(Candidate(calibration_images=32), 100) == []


def test_a_rejected_candidate_is_not_chosen() -> None:
    good, better = trial(Candidate(), 30), trial(Candidate(reduce_range=False), 40, rejection_reason="it overflows")
    assert _picker([better, good], by_latency=False)() is good


def test_when_everything_is_rejected_the_error_has_the_reasons() -> None:
    trials = [trial(Candidate(), 1, rejection_reason=reason) for reason in ("it overflows", "it is float")]
    with pytest.raises(StageError, match="it overflows; it is float"):
        _picker(trials, by_latency=False)()


def test_slow_formats_are_out_only_where_latency_counts() -> None:
    fast, slow = trial(Candidate(), 30, p50_ms=1.0), trial(Candidate(weights="u8", reduce_range=False), 40, p50_ms=1.3)
    assert _picker([fast, slow], by_latency=True)() is fast
    assert _picker([fast, slow], by_latency=False)() is slow


def test_a_format_is_as_fast_as_its_fastest_candidate() -> None:
    first = trial(Candidate(), 30, p50_ms=2.0)  # the same kernels as the next, timed in a bad moment
    again = trial(replace(Candidate(), calibrator="mse"), 30, p50_ms=1.0)
    other: Any = trial(Candidate(per_channel=False), 20, p50_ms=1.0)
    assert _picker([first, again, other], by_latency=True)() is first

"""The quantization search: builds, checks, scores and times candidates, and chooses one for a target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.benchmarks.candidate import onnx_candidates
from kdedge.benchmarks.gate import judge
from kdedge.benchmarks.host import host_kind
from kdedge.benchmarks.latency import measure_latency
from kdedge.benchmarks.session import open_model, run_model
from kdedge.errors import StageError
from kdedge.export.quantize.candidates import Candidate, Score, calibrators, choose, formats, score, sizes
from kdedge.export.quantize.proof import integer_proof, why_not_integer
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.targets import TARGETS
from kdedge.files import scratch_dir
from kdedge.machine import usable_cores
from kdedge.progress import track

__all__ = ["Trial", "Validation", "search"]

_SLOWER = 1.15
_LATENCY_SECONDS = 0.4


@dataclass(frozen=True)
class Trial:
    """A candidate that was built and scored.

    Attributes:
        candidate: How it was quantized.
        model: The deployed model.
        proof: From `kdedge.export.quantize.proof.integer_proof`.
        score: Its comparison with FP32 on the validation images.
        rejection_reason: Why it cannot be chosen for the target; empty if it can.
        float_layers: Names of the layers left in float on purpose.
        p50_ms: Median latency at batch 1 on one thread of this host (None: not measured).
    """

    candidate: Candidate
    model: bytes
    proof: Mapping[str, Any]
    score: Score
    rejection_reason: str = ""
    float_layers: tuple[str, ...] = ()
    p50_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the entry of ``candidates`` in ``candidates.json``."""
        return {
            "name": self.candidate.name,
            **asdict(self.candidate),
            **self.score.as_json(),
            "p50_ms": self.p50_ms,
            "bytes": len(self.model),
            "refused": self.rejection_reason or None,
        }


class Validation:
    """The validation images with the logits of the FP32 model.

    Args:
        fp32_path: The exported FP32 model.
        images: Images or windows.
        labels: ``[N] int64``.
        limit_pp: The limit of the gate in percentage points.
        balanced: Whether gate and choice are about balanced accuracy, not top-1.
        groups: Group of each image, ``[N] str``, see `kdedge.benchmarks.gate.judge`; None: no groups.
    """

    def __init__(
        self,
        fp32_path: Path,
        images: npt.NDArray[Any],
        labels: npt.NDArray[np.int64],
        limit_pp: float,
        *,
        balanced: bool = False,
        groups: npt.NDArray[np.str_] | None = None,
    ) -> None:
        self.fp32_path, self.images, self.labels, self.groups = fp32_path, images, labels, groups
        self.limit_pp, self.balanced = limit_pp, balanced
        self.fp32 = run_model(open_model(fp32_path, threads=usable_cores()), images)

    @property
    def fp32_top1_pct(self) -> float:
        """Correct predictions of the FP32 model in percent."""
        return float((self.fp32.argmax(1) == self.labels).mean() * 100)

    @property
    def can_pass(self) -> bool:
        """Whether the FP32 model passes the gate against itself; otherwise the images are too few for any model."""
        return bool(self.gate(self._scored(self.fp32))["passed"])

    def score(self, model: bytes, count: int | None = None) -> Score:
        """Score a model on the first ``count`` images (None: all)."""
        with scratch_dir() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model)
            logits = run_model(open_model(path, threads=usable_cores()), self.images[:count])
        return self._scored(logits)

    def gate(self, result: Score) -> dict[str, Any]:
        """Return the result of the gate on these images (see `kdedge.benchmarks.gate.judge`)."""
        right = self.fp32.argmax(1) == self.labels
        return judge(
            right,
            result.right,
            self.limit_pp,
            changed=result.flips,
            labels=self.labels,
            balanced=self.balanced,
            groups=self.groups,
        )

    def _scored(self, logits: npt.NDArray[np.float32]) -> Score:
        """Score logits of the first images."""
        count = len(logits)
        groups = None if self.groups is None else self.groups[:count]
        return score(self.fp32[:count], logits, self.labels[:count], balanced=self.balanced, groups=groups)

    def try_out(self, quantizer: Quantizer, candidate: Candidate, float_layers: Sequence[str] = ()) -> Trial:
        """Build a candidate, check its kernels and score it."""
        model = quantizer.build(candidate, exclude=float_layers)
        proof = integer_proof(model)
        reason = why_not_integer(proof, float_layers, any_operator=quantizer.adopted)
        return Trial(candidate, model, proof, self.score(model), reason, tuple(float_layers))

    def latencies(self, trials: Sequence[Trial]) -> tuple[float, list[float]]:
        """Measure FP32 and the trials in turn on one thread at batch 1; return the medians in milliseconds."""
        with scratch_dir() as folder:
            paths = {"fp32": self.fp32_path}
            for index, trial in enumerate(trials):
                paths[str(index)] = Path(folder) / f"{index}.onnx"
                paths[str(index)].write_bytes(trial.model)
            rows, _ = measure_latency(onnx_candidates(paths), seconds=_LATENCY_SECONDS)
        fp32, *others = (row["p50_ms"] for row in rows)
        return fp32, others


def search(
    quantizer: Quantizer, validation: Validation, target: str, calibration_images: int, *, compare: bool
) -> tuple[Trial, list[Trial], float]:
    """Try number formats, then calibrators, then calibration sizes.

    Args:
        quantizer: Quantizer of the float model.
        validation: Scores the candidates.
        target: A key of `kdedge.export.quantize.targets.TARGETS`.
        calibration_images: Number of calibration images for formats and calibrators.
        compare: Also try formats that the target does not support, and other calibration sizes.

    Returns:
        The chosen trial, all trials in order, and the latency of FP32 in milliseconds.

    Raises:
        StageError: No candidate is supported by the target and runs as integers.
    """
    host = host_kind()
    why_unsupported = TARGETS[target].why_unsupported

    def rejection_reason(candidate: Candidate) -> str:
        if reason := why_unsupported(candidate):
            return reason
        # The overflow would decide its score.
        overflows = candidate.overflows and host == "x64-avx2"
        return "it overflows on this host and cannot be scored here" if overflows else ""

    trials: list[Trial] = []
    fp32_ms = 0.0

    def stage(name: str, candidates: Sequence[Candidate]) -> None:
        nonlocal fp32_ms
        fresh = []
        with track(f"quantize: {name}", len(candidates)) as progress:
            for candidate in candidates:
                trial = validation.try_out(quantizer, candidate)
                fresh.append(replace(trial, rejection_reason=rejection_reason(candidate) or trial.rejection_reason))
                progress.advance(note=candidate.name)
        fp32_ms, times = validation.latencies(fresh)
        trials.extend(replace(trial, p50_ms=ms) for trial, ms in zip(fresh, times, strict=True))

    stage("formats", [item for item in formats(calibration_images) if compare or not rejection_reason(item)])
    pick = _picker(trials, by_latency=bool(host) and TARGETS[target].host == host)
    stage("calibrators", calibrators(pick().candidate))
    if compare:
        stage("calibration sizes", sizes(pick().candidate, len(quantizer.images)))
    return pick(), trials, fp32_ms


def _picker(trials: Sequence[Trial], *, by_latency: bool) -> Callable[[], Trial]:
    """Return a function that picks the best of the trials so far, by `kdedge.export.quantize.candidates.RULE`."""

    def pick() -> Trial:
        pool = [trial for trial in trials if not trial.rejection_reason]
        if not pool:
            reasons = "; ".join(dict.fromkeys(trial.rejection_reason for trial in trials))
            raise StageError(
                f"no INT8 candidate can be shipped: {reasons}",
                "onnxruntime would run the INT8 model in float; report this with the model",
            )
        if by_latency:
            fastest: dict[str, float] = {}
            for trial in pool:
                fastest[trial.candidate.format] = min(trial.p50_ms or 0.0, fastest.get(trial.candidate.format, 1e9))
            bound = _SLOWER * min(fastest.values())
            pool = [trial for trial in pool if fastest[trial.candidate.format] <= bound]
        return pool[choose([trial.score for trial in pool])]

    return pick

"""The answers of a classifier from its logits."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["answers"]


def answers(
    names: Sequence[str], logits: npt.NDArray[np.float32], labels: list[str], top_k: int
) -> Iterator[dict[str, Any]]:
    """Yield one result per input from logits ``[N, C]``."""
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exps / exps.sum(axis=1, keepdims=True)
    for name, row in zip(names, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")[:top_k]
        top = [{"label": labels[i], "index": int(i), "probability": round(float(row[i]), 6)} for i in order]
        answer: dict[str, Any] = {"file": name, **top[0]}
        if top_k > 1:
            answer["top"] = top
        yield answer

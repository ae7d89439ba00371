"""Sensitivity: the accuracy and logit noise of models with one quantized layer."""

from typing import Any

from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.search import Validation
from kdedge.progress import track

__all__ = ["measure_sensitivity"]

IMAGES = 1000
_DOMINANT_SHARE = 0.25


def measure_sensitivity(quantizer: Quantizer, candidate: Candidate, validation: Validation) -> dict[str, Any]:
    """Quantize one layer at a time (its input, weights and output), with all others in float.

    Returns:
        ``images`` (number of scored images); ``layers``: for each layer in the order of the graph its name (``layer``),
        the numbers of `kdedge.export.quantize.candidates.Score` and ``noise_share``, its share of the logit noise of
        all layers (0..1); ``dominant``: names of the layers with more than a quarter of it, the largest first.
    """
    rows = []
    images = min(IMAGES, len(validation.labels))
    with track("quantize: sensitivity", len(quantizer.layers)) as progress:
        for layer in quantizer.layers:
            result = validation.score(quantizer.build(candidate, only=[layer]), images)
            rows.append({"layer": layer, **result.as_json()})
            progress.advance(note=layer)
    noise = [10 ** (-row["sqnr_db"] / 10) for row in rows]
    for row, amount in zip(rows, noise, strict=True):
        row["noise_share"] = round(amount / sum(noise), 4)
    worst = sorted(rows, key=lambda row: -row["noise_share"])
    dominant = [row["layer"] for row in worst if row["noise_share"] > _DOMINANT_SHARE]
    return {"images": images, "layers": rows, "dominant": dominant}

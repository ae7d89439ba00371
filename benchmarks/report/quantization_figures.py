"""The figures of the quantization search: loss and latency of every candidate, the noise that each layer adds."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["paint_candidates", "paint_sensitivity"]

_CHOSEN, _FP32 = "#c9a227", "#8a94a6"
_PALETTE = ("#2f7ed8", "#e07b39", "#3c9d6b", "#a25ddc", "#d0453e")


def paint_candidates(axes: Any, record: Mapping[str, Any]) -> None:
    """Draw the logits' SQNR against latency: a color per format, hollow if unsuitable for the target.

    Args:
        axes: Matplotlib axes.
        record: The content of ``candidates.json``.
    """
    rows = [row for row in record["candidates"] if row["p50_ms"]]
    for color, name in zip(_PALETTE, dict.fromkeys(map(_format, rows)), strict=False):
        for per_channel, marker in ((True, "o"), (False, "s")):
            members = [row for row in rows if _format(row) == name and row["per_channel"] is per_channel]
            faces = ["none" if row["refused"] else color for row in members]
            times, noise = [row["p50_ms"] for row in members], [row["sqnr_db"] for row in members]
            label = f"{name}, per {'channel' if per_channel else 'tensor'}"
            axes.scatter(times, noise, s=36, marker=marker, c=faces, edgecolors=color, linewidths=1.5, zorder=3,
                         label=label if members else None)  # fmt: skip
    chosen = next((row for row in rows if row["name"] == record["chosen"]), None)
    if chosen:
        axes.scatter(
            chosen["p50_ms"], chosen["sqnr_db"], s=150, facecolors="none", edgecolors=_CHOSEN, linewidths=2,
            label=_chosen_label(record), zorder=4,
        )  # fmt: skip
    axes.axvline(record["fp32_p50_ms"], color=_FP32, linestyle="--", linewidth=1.2, label="latency of FP32")
    axes.set_xlim(left=0)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("median ms at batch 1, one thread of the quantizing host")
    axes.set_ylabel("SQNR of the logits in dB (more is better)")
    axes.set_title(f"hollow: not for the target {record['target']!r}", fontsize=8, loc="left")
    axes.grid()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


def paint_sensitivity(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the noise of quantizing only one layer, for each layer, as a share of all layers' noise, with its SQNR.

    Args:
        axes: Matplotlib axes.
        rows: ``layers`` of ``sensitivity.json``.
    """
    shown = sorted(rows, key=lambda row: -row["noise_share"])[:30]
    shown = [row for row in rows if row in shown]
    bars = axes.barh(range(len(shown)), [100 * row["noise_share"] for row in shown], color=_PALETTE[0], height=0.7)
    axes.bar_label(bars, [f"{row['sqnr_db']:.1f} dB" for row in shown], padding=3, fontsize=7)
    axes.set_yticks(range(len(shown)), [row["layer"] for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    chosen = f" (the worst {len(shown)} of {len(rows)} layers)" if len(shown) < len(rows) else ""
    axes.set_xlabel(f"share of the logits' noise in %, only this layer quantized{chosen}")
    axes.grid(axis="x")


def _chosen_label(record: Mapping[str, Any]) -> str:
    """Return the label of the ring; a repair step moved the chosen model afterwards."""
    rung = record.get("rung") or "search"
    return "chosen" if rung == "search" else f"chosen format,\nbefore {rung}"


def _format(row: Mapping[str, Any]) -> str:
    bits = ", 7-bit weights" if row["reduce_range"] else ""
    return f"{row['activations']}{row['weights']}{bits}"

"""Numbers as text, in the same form everywhere in a report."""

import math
from typing import Any

__all__ = ["format_bytes", "format_count", "format_ms", "format_pct", "format_ratio", "number", "short_provider"]


def number(value: Any) -> float | None:
    """Return a value of a report as a float, or None if it is missing or not a number."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(result) else result


def short_provider(provider: str) -> str:
    """Return the name of an execution provider without its common suffix."""
    return provider.removesuffix("ExecutionProvider")


def format_pct(value: float | None) -> str:
    """Format a value in percent; None: unknown."""
    return "–" if value is None else f"{value:.2f} %"


def format_ms(value: float | None) -> str:
    """Format milliseconds with at least three digits; None: unknown."""
    return "–" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def format_count(value: Any) -> str | None:
    """Format a count, from a million on in millions; None: not a number."""
    amount = number(value)
    if amount is None:
        return None
    return f"{amount / 1e6:.2f} M" if amount >= 1e6 else f"{amount:,.0f}"


def format_bytes(value: float) -> str:
    """Format a number of bytes in MB or kB (powers of ten)."""
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def format_ratio(ratio: float) -> str:
    """Format the size of FP32 relative to that of INT8: tiny models become larger."""
    return f"{ratio:.2f}× smaller" if ratio >= 1 else f"{1 / ratio:.2f}× larger"

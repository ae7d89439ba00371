"""Parsers of comma-separated options, and suggestions for misspelled names."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from kdedge.errors import InputError

__all__ = ["closest", "parse_choices", "parse_counts", "parse_cpus", "parse_paths"]


def parse_counts(text: str, flag: str, most: int, least: int = 1) -> list[int]:
    """Parse a comma-separated list of counts such as ``1,8,32``.

    Raises:
        InputError: A part is not a whole number from ``least`` to ``most``.
    """
    counts = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not least <= int(part) <= most:
            raise InputError(
                f"{flag} {text!r}: {part.strip()!r} is not a whole number from {least} to {most}",
                f"for example {flag} 1,2",
            )
        counts.append(int(part))
    return list(dict.fromkeys(counts))


def parse_cpus(text: str, flag: str) -> list[int]:
    """Parse a list of CPU numbers and ranges such as ``0,2-3``; an empty text is an empty list.

    Raises:
        InputError: A part is neither a whole number nor a range.
    """
    cpus: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.strip().partition("-")
        last = last if "-" in part else first
        # Linux has at most 8192 CPUs: a range must not be expanded to billions.
        if not (first.isdecimal() and last.isdecimal() and len(last) <= 4 and int(first) <= int(last)):
            raise InputError(
                f"{flag} {text!r}: {part.strip()!r} is not a CPU number or range", f"for example {flag} 0,2-3"
            )
        cpus += range(int(first), int(last) + 1)
    return list(dict.fromkeys(cpus))


def parse_choices(text: str, flag: str, known: tuple[str, ...]) -> list[str]:
    """Parse a comma-separated list of names such as ``ce,kd``.

    Raises:
        InputError: A part is not a known name.
    """
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in known:
            raise InputError(
                f"{flag} {text!r}: unknown name {name!r}{closest(name, known)}", f"known: {', '.join(known)}"
            )
    return list(dict.fromkeys(names))


def closest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def parse_paths(text: str, flag: str) -> list[Path]:
    """Parse a comma-separated list of paths; an empty text is an empty list.

    The longest part that exists is one path, so a path may contain commas.

    Raises:
        InputError: A part is empty.
    """
    parts, paths = text.split(",") if text else [], []
    while parts:
        joined = [",".join(parts[:count]).strip() for count in range(len(parts), 0, -1)]
        path = next((path for path in joined if os.path.exists(path)), joined[-1])
        if not path:
            raise InputError(
                f"{flag} {text!r}: nothing between two commas", f"for example {flag} artifacts/a,artifacts/b"
            )
        paths.append(path)
        del parts[: len(parts) - joined.index(path)]
    return [Path(path) for path in dict.fromkeys(paths)]

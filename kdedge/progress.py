"""Log lines and progress bars, all on stderr.

On a terminal `track` draws a rich bar with the time left; elsewhere it prints a plain line at most every
ten seconds. `set_quiet(True)` silences both; warnings and errors are always shown.
"""

import json
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Tracker", "console", "log", "printable", "say", "set_quiet", "track", "warn", "warn_once"]

console = Console(stderr=True, highlight=False)

# `set_quiet` silences this one; warnings and errors go to `console`.
_log_console = Console(stderr=True, highlight=False)
_PLAIN_LINE_INTERVAL_S = 10.0
_BAR_WIDTH = 12


# Control characters, line and paragraph separators, bidirectional controls.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]+")


def printable(text: str) -> str:
    """Escape characters that could change a terminal or break a line, as JSON does; replace lone surrogates.

    For labels, file names and other text from outside. Other scripts, joiners and spaces stay as they are.
    """
    escaped = _UNPRINTABLE.sub(lambda found: json.dumps(found[0])[1:-1], text)
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", escaped)


def set_quiet(quiet: bool) -> None:
    """Silence `log` and `track` in this process, or undo it."""
    _log_console.quiet = quiet


def log(message: str) -> None:
    """Print one line of information to stderr unless quiet."""
    _print(_log_console, printable(message))


def warn(message: str) -> None:
    """Print one warning line to stderr, also when quiet."""
    say(f"warning: {printable(message)}", "yellow")


def say(text: str, color: str | None = None) -> None:
    """Print text to stderr, also when quiet; in color on a terminal."""
    _print(console, text, color if console.is_terminal else None)


def _print(where: Console, text: str, color: str | None = None) -> None:
    """Print text unbroken, or on a terminal in lines that break between words."""
    if where.is_terminal:  # rich itself breaks words that are longer than a line, such as paths
        wrap = partial(textwrap.fill, width=where.width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(map(wrap, text.split("\n")))
    where.print(text, style=color, markup=False, soft_wrap=True)


class Tracker(Protocol):
    """The progress that `track` shows."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count ``steps`` as done; a ``note`` replaces the text at the end of the line."""

    def shorten(self, steps: int) -> None:
        """Expect fewer steps than before."""


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass

    def shorten(self, steps: int) -> None:
        pass


class _Bar:
    def __init__(self, progress: "Progress", task: "TaskID", note_width: int) -> None:
        self._progress, self._task, self._note_width = progress, task, note_width

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._task, note=textwrap.shorten(note, self._note_width, placeholder=" …"))
        self._progress.advance(self._task, steps)

    def shorten(self, steps: int) -> None:
        task = self._progress.tasks[0]
        self._progress.update(self._task, total=(task.total or 0) - steps)


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._start = self._last = time.monotonic()

    def shorten(self, steps: int) -> None:
        self._total -= steps

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last < _PLAIN_LINE_INTERVAL_S:
            return
        self._last = now
        left = ""
        if self._done:
            left_s = (now - self._start) / self._done * (self._total - self._done)
            left = f", {format_duration(left_s)} left"
        log(f"{self._title}: {self._done}/{self._total}{left} {note}".rstrip())


def format_duration(seconds: float) -> str:
    """Format a duration in seconds as ``12 s``, ``3 min 05 s`` or ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@cache
def warn_once(message: str) -> None:
    """Print a warning that this process has not printed before."""
    warn(message)


@contextmanager
def track(title: str, total: int) -> Iterator[Tracker]:
    """Show the progress of ``total`` steps with the time left until the block ends."""
    if _log_console.quiet:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(title, total)
    else:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=_log_console, transient=True) as progress:
            # Width of the columns before the note: both times, "left", the counts and a blank after each.
            taken = len(title) + _BAR_WIDTH + 2 * len(str(total)) + 25
            task = progress.add_task(title, total=total, note="")
            yield _Bar(progress, task, max(console.width - taken, len(" …")))

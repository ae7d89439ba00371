"""Lines on stderr: whole in files and pipes, broken between words on a terminal."""

import io
import re
import sys

import pytest
from rich.console import Console

from kdedge import progress

MESSAGE = f"the gate is undecided: {'INT8 loses 0.19 pp on 540 test images ' * 4}see /a/path/{'x' * 90}/report.json"


@pytest.mark.parametrize("show", [progress.log, progress.warn])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_never_breaks_inside_a_word(monkeypatch, show, terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, highlight=False, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress, "_log_console", console)
    show(MESSAGE)
    lines = stream.getvalue().splitlines()
    assert (len(lines) > 1) == terminal
    assert " ".join(line.strip() for line in lines).removeprefix("warning: ") == MESSAGE
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines) == terminal


@pytest.fixture
def terminal_stream(monkeypatch):
    """Return what progress writes to a terminal of 80 columns."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, highlight=False, color_system=None)
    monkeypatch.setattr(progress, "_log_console", console)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    return stream


def test_a_long_note_leaves_the_counts_of_a_bar_whole(terminal_stream):
    with progress.track("latency (CPU)", 150) as tracker:
        tracker.advance(150, "batch 1, 1 thread, disturbed: measuring on")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal_stream.getvalue()).replace("\r", "\n").splitlines()
    assert re.search(r"150/150 \d:\d\d:\d\d left \d:\d\d:\d\d batch 1, 1 thread, …", "\n".join(lines))
    assert max(map(len, lines)) <= 80


def test_a_note_in_brackets_is_shown_as_it_is(terminal_stream):
    with progress.track("rounding [b]", 2) as tracker:
        tracker.advance(2, "[/features/0]")
    assert "rounding [b] " in terminal_stream.getvalue()
    assert "[/features/0]" in terminal_stream.getvalue()

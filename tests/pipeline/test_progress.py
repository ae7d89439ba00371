"""Lines on stderr: whole in files and pipes, broken between words on a terminal."""

import io

import pytest
from rich.console import Console

from pipeline import progress

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

"""What tests of studies share: a command, here and as a process, and the reading of results."""

import csv
import subprocess
import sys
import time

from typer.testing import CliRunner

from kdedge.pipeline.cli import app


def kdedge(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def small(study, out, *more, methods="kd", seeds="0"):
    """Return the command of the study with its teacher, in another directory and with fewer cells."""
    command = [out if part == study[0] else part for part in without_teacher_options(study[1])]
    command[command.index("--seeds") + 1] = seeds
    command[command.index("--methods") + 1] = methods
    return [*command, "--teacher-dir", study[0] / "teacher", *more]


def without_teacher_options(command):
    """Drop what `--teacher-dir` excludes."""
    flags = [index for index, part in enumerate(command) if str(part).startswith("--teacher")]
    return [part for index, part in enumerate(command) if index not in flags and index - 1 not in flags]


def student(out, method, seed=0):
    return (out / "e2" / f"seed{seed}" / method / "distill" / "student.safetensors").read_bytes()


def wait_for(condition):
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited for minutes")


def start(command, before=()):
    """Start a study as a process in which Ctrl-C works, also in the background of a shell; ``before`` starts it."""
    program = "import signal; signal.signal(2, signal.default_int_handler); from kdedge.pipeline.cli import app; app()"
    words = [*before, sys.executable, "-c", program, *map(str, command)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

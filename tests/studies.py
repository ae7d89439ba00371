"""What tests of studies share: a command, and the reading of tables."""

import csv

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

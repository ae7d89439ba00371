"""The commands, and a call of one in this process."""

from typer.testing import CliRunner

from kdedge.pipeline.cli import app

COMMANDS = [
    "run-all",
    "data",
    "teacher",
    "distill",
    "export",
    "quantize",
    "benchmark",
    "bundle",
    "compare",
    "ablate",
    "verify",
    "predict",
    "report",
    "doctor",
    "export-c",
    "gate",
]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})

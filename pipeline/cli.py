"""The ``kdedge`` command: parses, calls a stage, prints.

The commands are in `pipeline.commands`, where every field of `pipeline.config` becomes a flag. Nothing heavy is
imported before a command needs it. Progress and log lines go to stderr, results to stdout.

    kdedge run-all --data sample --out artifacts/demo
"""

import sys

import typer

from pipeline.commands import bundles, stages, studies
from pipeline.commands.failures import Commands

__all__ = ["app"]

app = typer.Typer(
    cls=Commands,
    help="From labelled images to a small INT8 image classifier, verified before it ships, with one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: kdedge run-all --data sample --out artifacts/demo",
)
for group in (stages, studies, bundles):
    app.add_typer(group.app)


if __name__ == "__main__":
    sys.exit(app())

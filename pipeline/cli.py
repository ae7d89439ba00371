"""The ``kdedge`` command: parses, calls a stage, prints.

The commands are in `kdedge.pipeline.commands`; every field of `kdedge.pipeline.config` is a flag. Heavy modules are
imported only when a command needs them. Progress and log lines go to stderr, results to stdout.

    kdedge run-all --data sample --out artifacts/demo
"""

import sys
from typing import Annotated

import typer

from kdedge import __version__
from kdedge.pipeline.commands import bundles, gate, stages, studies
from kdedge.pipeline.commands.failures import Commands

__all__ = ["app"]

app = typer.Typer(
    cls=Commands,
    help="From labelled images or sensor windows to a small, verified INT8 classifier with one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Try: kdedge run-all --data sample --out artifacts/demo --allow-undecided",
)
for group in (stages, studies, bundles, gate):
    app.add_typer(group.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kdedge {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Handle the options of ``kdedge`` without a command."""


if __name__ == "__main__":
    sys.exit(app())

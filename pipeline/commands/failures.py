"""How a command that fails ends: one message with what to do next on stderr, no traceback, an exit code."""

import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from kdedge.errors import KdedgeError
from kdedge.install import install_command
from kdedge.progress import printable, say, set_quiet

__all__ = ["Commands", "reported", "show_error"]

# The base of everything that Typer finds wrong with a command line; it lies in click or, later, in Typer's copy of it.
_UsageError: Any = typer.BadParameter.__base__

# Which extra installs a module that the base install lacks.
_EXTRAS = {"onnxruntime": "cpu"} | dict.fromkeys(("torch", "torchvision", "onnx", "onnxscript", "safetensors"), "train")

# Begins each item where `kdedge.pipeline.config.build` lists several problems.
_ITEM = "\n  - "

# What PyTorch says of it is a RuntimeError.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")


class Commands(TyperGroup):
    """The commands; wrong usage is shown as every other error is."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run a command line and exit."""
        _open_closed_streams()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a label need not fit a terminal's encoding
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _UsageError as error:
            if not error.format_message():  # no command: Typer has printed the help
                sys.exit(error.exit_code)
            command = error.ctx.command_path if error.ctx else "kdedge"
            show_error(error.format_message(), f"see `{command} --help`")
            code = error.exit_code
        sys.exit(code)


def reported(function: Callable[..., None]) -> Callable[..., None]:
    """Show a `KdedgeError` as one message with what to do next, and end with its exit code."""

    @functools.wraps(function)
    def wrapper(**arguments: Any) -> None:
        set_quiet(arguments.get("quiet", False))
        try:
            function(**arguments)
            # A reader that went away (`kdedge … | head`) is met here, where Typer ends quietly, not at exit.
            sys.stdout.flush()
        except KdedgeError as error:
            show_error(str(error), error.hint)
            raise typer.Exit(error.exit_code) from None
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            show_error(f"this command needs {error.name}, which is not installed", install_command(extra))
            raise typer.Exit(2) from None
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            show_error("not enough memory", "lower --image-size, --train-size or the batch size")
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # Typer ends quietly
                raise
            # No path that somebody gave is at fault, but the disk, the network or a limit.
            if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
                show_error(f"the system refused: {error}", "")
                raise typer.Exit(1) from None
            show_error(f"cannot use {error.filename}: {error.strerror}", "check the path and its permissions")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interrupt:
            say("; ".join(["interrupted", *interrupt.args]))
            raise typer.Exit(130) from None

    return wrapper


def show_error(message: str, hint: str = "") -> None:
    """Print an error on one line, or one for every item of a list, and what to do next on another."""
    sys.stdout.flush()  # where both go to one file, results stand before the error that ended them
    text = _ITEM.join(map(printable, message.split(_ITEM)))
    say(f"error: {text}", "red")
    if hint:
        say(f"  -> {printable(hint)}")


def _open_closed_streams() -> None:
    """Open what the shell closed (``>&-``) on the null device: nothing else may get its number, and it can be used."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.set_inheritable(null, null == number)
            setattr(sys, name, os.fdopen(null, mode))

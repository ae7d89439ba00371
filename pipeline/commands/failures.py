"""Shows the error of a command: one message with the next step on stderr, no traceback, an exit code."""

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
from kdedge.pipeline.training import distributed
from kdedge.progress import printable, say, set_quiet

__all__ = ["Commands", "reported", "show_error"]

# The base of all usage errors; depending on its version, Typer takes it from click or from its own copy.
_UsageError: Any = typer.BadParameter.__base__

# The extra that installs a module missing from the base install.
_EXTRAS = {"onnxruntime": "cpu", "timm": "timm", "cryptography": "sign", "pyarrow": "hf", "huggingface_hub": "hf"}
_EXTRAS |= dict.fromkeys(("tensorboard", "mlflow"), "tracking")
_EXTRAS |= {"submitit": "cluster"}
_EXTRAS |= dict.fromkeys(("torch", "torchvision", "onnx", "onnxscript", "safetensors"), "train")

# The start of each item in a list of problems from `kdedge.pipeline.config.build`.
_ITEM = "\n  - "

# PyTorch raises a RuntimeError for it.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")


class Commands(TyperGroup):
    """The commands; usage errors are shown like other errors."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run a command line and exit."""
        _open_closed_streams()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a label need not fit a terminal's encoding
        if distributed.processes() > 1:
            distributed.join()
        if distributed.rank():
            _take_part()
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _UsageError as error:
            if not error.format_message():  # no command: Typer has printed the help
                sys.exit(error.exit_code)
            command = error.ctx.command_path if error.ctx else "kdedge"
            show_error(error.format_message(), f"see `{command} --help`")
            code = error.exit_code
        except OSError as error:  # of a help text; commands report their own
            show_error(f"system error: {error}")
            code = 1
        if not code:
            distributed.dismiss()
        distributed.leave(code or 0)


def reported(function: Callable[..., None]) -> Callable[..., None]:
    """Show a `KdedgeError` as one message with the next step, and end with its exit code."""

    @functools.wraps(function)
    def wrapper(**arguments: Any) -> None:
        set_quiet(arguments.get("quiet", False))
        try:
            function(**arguments)
            # A closed pipe (`kdedge … | head`) raises here, where Typer ends quietly, and not at exit.
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
            # The cause is the disk, the network or a limit, not a path of the user.
            if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
                show_error(f"system error: {error}", "")
                raise typer.Exit(1) from None
            show_error(f"cannot use {error.filename}: {error.strerror}", "check the path and its permissions")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interrupt:
            say("; ".join(["interrupted", *interrupt.args]))
            raise typer.Exit(130) from None

    return wrapper


def _take_part() -> NoReturn:
    """Take part in the trainings of the first process, silently, and end."""
    try:
        reported(distributed.take_part)()
    except typer.Exit as end:
        distributed.leave(end.exit_code)
    distributed.leave(0)


def show_error(message: str, hint: str = "") -> None:
    """Print an error on one line (a list: one line per item) and the next step on another."""
    sys.stdout.flush()  # if both go to one file, results come before the error
    text = _ITEM.join(map(printable, message.split(_ITEM)))
    say(f"error: {text}", "red")
    if hint:
        say(f"  -> {printable(hint)}")


def _open_closed_streams() -> None:
    """Open streams that the shell closed (``>&-``) on the null device, so that no other file gets their numbers."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.set_inheritable(null, null == number)
            setattr(sys, name, os.fdopen(null, mode))

"""The errors that kdedge shows to its users, with their exit codes.

A message names the finding, its place and the expectation; ``hint`` names the next step.
`kdedge.pipeline.commands.failures` prints both without a traceback. Any other exception is a bug in kdedge.
"""

import shlex

__all__ = ["BusyError", "DivergenceError", "GateError", "InputError", "KdedgeError", "StageError", "command"]


def command(*words: object) -> str:
    """Return a command of kdedge, quoted for a shell, for a hint."""
    return shlex.join(["kdedge", *map(str, words)])


class KdedgeError(Exception):
    """Base of all errors with a message for the user.

    Args:
        message: The finding, its place and the expectation.
        hint: The next step, often a command. Default: none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class StageError(KdedgeError):
    """A stage failed: no disk space, no network, divergence, a failed check."""

    exit_code = 1


class DivergenceError(StageError):
    """A training diverged. The options are the cause, so the same command diverges again."""


class InputError(KdedgeError):
    """Wrong usage or bad input: a file, an option, a configuration key."""

    exit_code = 2


class BusyError(InputError):
    """Another process uses the run directory."""


class GateError(KdedgeError):
    """The INT8 model lost too much accuracy, or the test images are too few to decide."""

    exit_code = 3

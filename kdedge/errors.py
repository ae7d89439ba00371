"""The errors that kdedge shows to its users, and the exit code that each ends with.

A message says what was found, where and what was expected; ``hint`` says what to do next.
`kdedge.pipeline.commands.failures` prints both without a traceback. Anything else that escapes is a bug in kdedge.
"""

__all__ = ["DivergenceError", "GateError", "InputError", "KdedgeError", "StageError"]


class KdedgeError(Exception):
    """Base of every error that a user can cause or meet.

    Args:
        message: What was found, where, and what was expected.
        hint: What to do next, if there is something to do: often a command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class StageError(KdedgeError):
    """A stage could not do its work: no disk space, no network, divergence, a failed check."""

    exit_code = 1


class DivergenceError(StageError):
    """A training diverged: with these options, not by accident, so the same command would diverge again."""


class InputError(KdedgeError):
    """Wrong usage or bad input: a file, an option, a configuration key."""

    exit_code = 2


class GateError(KdedgeError):
    """The INT8 model lost too much accuracy, or too few images were there to tell."""

    exit_code = 3

"""Declare the options of a section once: default, help, flag, range. The command line and TOML files follow from it."""

from collections.abc import Callable
from dataclasses import field
from typing import Any

__all__ = ["option"]


def option(
    default: Any,
    help: str,
    *,
    flag: str,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    several: bool = False,
    parse: Callable[[str, str], object] | None = None,
    auto: str = "",
) -> Any:
    """Declare a field: help text, flag, and the inclusive range, the choices or the parser of its value.

    ``several``: the value may name several choices, comma-separated.
    ``auto`` describes a default that the data decides. A default of None is a bool that the data decides.
    """
    kind = bool if default is None else type(default)
    meta: dict[str, Any] = {"help": help, "flag": flag, "least": least, "most": most, "choices": choices}
    meta |= {"several": several, "parse": parse, "kind": kind, "auto": auto}
    return field(default=default, metadata=meta)

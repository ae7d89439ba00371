"""Command lines for others: short, and without paths of this machine."""

import dataclasses
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from kdedge.pipeline.config import SECTIONS, Config
from kdedge.pipeline.config.build import build_config, preset_for
from kdedge.pipeline.data.options import PATH_KINDS, without_query
from kdedge.pipeline.distill.options import DistillConfig

__all__ = ["as_flags", "cuts_paths", "shareable"]

_PATHS = ("--data-dir", "--compare-with")
_LISTS = ("--student-weights", "--more-teachers")  # of paths
_PATH = re.compile(rf"((?:--[\w-]+=)?(?:(?:{'|'.join(PATH_KINDS)}):)?)(.*)", re.DOTALL)  # matches every word


def as_flags(config: Config) -> list[str]:
    """Return the shortest command line of a configuration: the options that differ from its preset and recipe.

    It has no paths of this machine; see `shareable`.
    """
    return shareable(_flags(config))


def cuts_paths(config: Config) -> bool:
    """Return whether the command line of `as_flags` lacks paths that the configuration has."""
    words = _flags(config)
    return shareable(words) != words


def _flags(config: Config) -> list[str]:
    """Return the options that differ from the preset and recipe of a configuration, without --track."""
    recipe = config.distill.recipe
    # The student of a preset need not be for this data.
    base = build_config({"distill": {"recipe": recipe}}, preset=config.preset, consistent=False)
    words = [] if config.preset == preset_for(config.data.source) else ["--preset", config.preset]
    words += [] if recipe == DistillConfig().recipe else ["--recipe", recipe]
    for section, kind in SECTIONS.items():
        for item in dataclasses.fields(kind):
            flag, value = item.metadata["flag"], getattr(getattr(config, section), item.name)
            if not flag or section == "tracking" or value == getattr(getattr(base, section), item.name):
                continue
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            else:
                words += [flag, str(value)]
    return words


def shareable(words: Iterable[str]) -> list[str]:
    """Return a command line for others, with absolute paths cut to their last part.

    Without ``--data-dir``, ``--compare-with`` and queries of addresses: they change no result of a run and are private.
    """
    shown: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if word in _PATHS:
            next(rest, None)
        elif word in _LISTS:
            shown += [word, *(_cut_each(paths) for paths in islice(rest, 1))]
        elif flag in _LISTS:
            shown.append(flag + equals + _cut_each(value))
        elif flag not in _PATHS:
            before, path = _PATH.fullmatch(word).groups()  # type: ignore[union-attr]
            shown.append(before + _cut(path))
    return shown


def _cut(path: str) -> str:
    return Path(path).name or path if Path(path).is_absolute() else without_query(path)


def _cut_each(paths: str) -> str:
    return re.sub(r"[^\s,][^,]*", lambda path: _cut(path[0]), paths)

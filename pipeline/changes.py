"""Which recorded values differ from the values that a command would record."""

from collections.abc import Mapping
from typing import Any

__all__ = ["changed_keys", "changes"]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the dotted keys whose values differ between two nested mappings."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += [f"{key}.{inner}" for inner in changed_keys(before, after)]
        elif before != after:
            changed.append(key)
    return changed


def changes(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """List the keys of a result or of unfinished work that differ from the wanted ones."""
    return [name.replace(".", " ", 1) for name in changed_keys({part: made[part] for part in wanted}, wanted)]

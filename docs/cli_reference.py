"""The reference of every command and option, made from the Typer application."""

from collections.abc import Iterable
from typing import Any

import typer

from kdedge.pipeline.cli import app

__all__ = ["cli_reference"]


def cli_reference() -> str:
    """Return the reference as Markdown: a section per command, then a table per section of options.

    An option of the configuration is in the table of its section, once. A command names the sections that it takes.
    """
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    sections: dict[str, dict[str, Any]] = {}
    for command in commands.values():
        for item in command.params:
            if section := _section_of(item):
                sections.setdefault(section, {}).setdefault(item.name, item)
    parts = ["## Commands", *(_command(name, command, sections) for name, command in commands.items())]
    parts += ["## Options of a run", *(_section(name, items.values()) for name, items in sections.items())]
    return "\n\n".join(parts)


def _command(name: str, command: Any, sections: dict[str, dict[str, Any]]) -> str:
    shown = [item for item in command.params if item.name not in ("help", "help_all")]
    arguments = [item for item in shown if item.param_type_name == "argument"]
    own = [item for item in shown if item not in arguments and not _section_of(item)]
    usage = " ".join(["kdedge", name, *(_argument(item) for item in arguments), "[OPTIONS]"])
    parts = [f"### kdedge {name}", _sentence(command.help), f"```text\n{usage}\n```"]
    if arguments:
        parts.append("\n".join(f"- `{_argument(item)}`: {_sentence(item.help)}" for item in arguments))
    if own:
        rows = (f"| {_flags(item)} | {_cell(item.help)}{_default(item)} |" for item in own)
        parts.append("\n".join(["| option | meaning |", "| --- | --- |", *rows]))
    names = {item.name for item in shown}
    taken = [section for section, items in sections.items() if names & items.keys()]
    if taken:
        parts.append("Options of a run: " + ", ".join(f"[{section}](#{section})" for section in taken) + ".")
    for section in taken:
        if without := [_flags(item) for key, item in sections[section].items() if key not in names]:
            parts.append(f"Without these options of {section}: {', '.join(without)}.")
    return "\n\n".join(parts)


def _section_of(item: Any) -> str:
    """Return the section of the configuration that an option is in; empty: none."""
    section, _, field = item.name.partition("__")
    return section if field else ""


def _section(name: str, items: Iterable[Any]) -> str:
    rows = (
        f"| {_flags(item)} | `{item.name.partition('__')[2] or item.name}` | {_cell(item.help)} |" for item in items
    )
    return "\n".join([f"### {name}", "", "| option | TOML key | meaning |", "| --- | --- | --- |", *rows])


def _argument(item: Any) -> str:
    name = item.name.upper().replace("_", "-")
    name += "..." if item.nargs == -1 else ""
    return name if item.required else f"[{name}]"


def _flags(item: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in (*item.opts, *item.secondary_opts))


def _default(item: Any) -> str:
    shown = item.show_default and item.default not in (None, "", False, [], ())
    return f" Default: `{item.default}`." if shown else ""


def _cell(text: str | None) -> str:
    return _sentence(text).replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())

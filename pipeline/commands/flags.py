"""Makes a command from a function: a flag for every field of `kdedge.pipeline.config`, and further options.

Under ``@app.command()``, ``@configured(("export",))`` adds the flags of a section to ``export(config, out, **again)``.
A command with many options names the ones in ``--help``; ``--help-all`` shows all, in a panel per section.
"""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from kdedge.errors import InputError
from kdedge.files import read_json, read_toml
from kdedge.pipeline.commands.failures import reported
from kdedge.pipeline.config import SECTIONS, Config
from kdedge.pipeline.config.build import PRESETS, RENAMED, build_config, source_of
from kdedge.pipeline.config.checks import RUN_FLAGS, Flags
from kdedge.pipeline.data.options import WINDOWS
from kdedge.progress import warn

__all__ = [
    "BEGINNING",
    "DEFAULT_OUT",
    "JSON",
    "STAGE",
    "AsJson",
    "Fields",
    "Options",
    "cli_option",
    "configured",
    "load_config_file",
    "out_option",
    "resolve",
]

Options = dict[str, tuple[Any, Any]]
"""Annotation and default of the parameters of a command, by name."""

Fields = dict[str, dict[str, Any]]
"""Values of fields of the configuration, by section and name."""

DEFAULT_OUT = Path("artifacts/run")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one line.", metavar="")]


def cli_option(
    names: str, text: str, kind: Any, default: Any, *, metavar: str | None = None, **limits: Any
) -> tuple[Any, Any]:
    """Return annotation and default of an option; ``names`` are separated by blanks, ``limits`` are those of Typer."""
    shown = metavar if metavar is not None else "" if kind is bool else kind.__name__
    return Annotated[kind, typer.Option(*names.split(), help=text, metavar=shown, **limits)], default


def out_option(default: Path | None, text: str = "Run directory.") -> Options:
    """Return the option ``--out`` with its default (None: the command chooses it)."""
    # Text, because an empty path is the current directory.
    return {"out": cli_option("--out", text, str | None, default and str(default), metavar="path")}


# A command that starts a run may name its preset; later stages keep it.
BEGINNING: Options = out_option(DEFAULT_OUT) | {
    "config": cli_option(
        "--config", "TOML file with options, a table per section.", Path | None, None, metavar="path"
    ),
    "preset": cli_option(
        "--preset", f"Named settings: {', '.join(PRESETS)}. Later stages use the preset of the run.",
        str | None, None, metavar="str",
    ),
    "force": cli_option("--force", "Run again even if the result is up to date.", bool, False),
    "refresh": cli_option(
        "--refresh", "Run again if another version of the stage, PyTorch, ONNX or onnxruntime made the result.",
        bool, False,
    ),
    "quiet": cli_option("--quiet -q", "Print only results and warnings, no progress.", bool, False),
}  # fmt: skip
JSON: Options = {"as_json": (AsJson, False)}
STAGE: Options = {key: option for key, option in BEGINNING.items() if key != "preset"}
_CONSUMED = ("config", "preset", "quiet", "help_all")  # before the function of a command is called


def configured(
    sections: tuple[str, ...],
    options: Options = STAGE,
    *,
    without: tuple[str, ...] = (),
    short: Mapping[str, str] | None = None,
    first: tuple[str, ...] = (),
    continues: bool = True,
    prepare: Callable[[dict[str, Any], Fields], Flags] = lambda given, fields: RUN_FLAGS,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options and a flag for every field of some sections to a command.

    The decorated function is called with the configuration and the options that are not part of it.

    Args:
        sections: Sections of the configuration.
        options: Further options.
        without: Options, or fields as ``section__field``, to leave out.
        short: Second flags of fields, by ``section__field``, which are unambiguous in this command.
        first: Options and fields that ``--help`` shows; only ``--help-all`` shows the others. Empty: all.
        continues: Whether options that are not given are those of the run, unless another preset is given.
        prepare: Called with the given options and fields before the configuration is built. It may change both,
            and returns the command's names of options.
    """
    old_names = {old: new for old, new in RENAMED["study"].items() if new in options}
    declared = {**options, **_section_options(sections, short or {}, in_panels=not first)}
    declared = {key: declared[key] for key in declared if key not in without}
    if first:
        options = options | {"help_all": _help_all_option(len(declared))}
        declared = {key: option if key in first else _hidden(option) for key, option in declared.items()}
        declared["help_all"] = options["help_all"]
    declared |= {old: _old_name(old, new, get_args(options[new][0])[0]) for old, new in old_names.items()}
    parameters = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for key, (annotation, default) in declared.items()
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @reported
        @functools.wraps(function)
        def command(**arguments: Any) -> None:
            given = {key: arguments.pop(key) for key in options if key in arguments}
            for old, new in old_names.items():
                if (value := arguments.pop(old)) is not None:
                    _warn_of_old_name(old, new)
                    given[new] = value
            for key in ("out", "preset"):
                if given.get(key) == "":
                    name = function.__name__.replace("_", "-")
                    raise InputError(f"--{key} is empty", f"leave it out for the default; see `kdedge {name} --help`")
            if given.get("out"):
                given["out"] = Path(given["out"])
            fields = _fields(arguments)
            flags = prepare(given, fields)
            rest = {key: value for key, value in given.items() if key not in _CONSUMED}
            function(resolve(given, fields, flags, continues=continues), **rest)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _hidden(option: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return an option that ``--help`` does not show."""
    kind, declared = get_args(option[0])
    declared = copy.copy(declared)
    declared.hidden = True
    return Annotated[kind, declared], option[1]


def _help_all_option(count: int) -> tuple[Any, Any]:
    """Return the option that shows every option of its command, with a panel per section."""

    def show(context: typer.Context, value: bool) -> None:
        if not value:
            return
        for parameter in context.command.params:
            section, _, field = (parameter.name or "").partition("__")
            parameter.hidden = False  # type: ignore[attr-defined]
            if field:
                parameter.rich_help_panel = section  # type: ignore[attr-defined]
        print(context.get_help())
        raise typer.Exit

    text = f"Show all {count} options and exit."
    return Annotated[bool, typer.Option("--help-all", help=text, is_eager=True, callback=show, metavar="")], False


def _section_options(sections: tuple[str, ...], short: Mapping[str, str], *, in_panels: bool) -> Options:
    """Return (annotation, default) of a Typer option for every field of these sections, by ``section__field``."""
    options: Options = {}
    for section in sections:
        for item in dataclasses.fields(SECTIONS[section]):
            flag = item.metadata["flag"]
            if not flag:
                continue
            kind = item.metadata["kind"]
            key = f"{section}__{item.name}"
            names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag, *([short[key]] if key in short else [])]
            text = f"{item.metadata['help']} ({_describe_default(item)})"
            declared = typer.Option(
                *names,
                help=text,
                rich_help_panel=section if in_panels else None,
                show_default=False,
                metavar="" if kind is bool else kind.__name__,
            )
            options[key] = (Annotated[kind | None, declared], None)
        for old, new in RENAMED.get(section, {}).items():
            options[f"{section}__{old}"] = _old_name(old, new, get_args(options[f"{section}__{new}"][0])[0])
    return options


def _old_name(old: str, new: str, kind: Any) -> tuple[Any, Any]:
    """Return the hidden option that an option of this kind had as its old name."""
    flag = _flag(old)
    switch = bool in (kind, *get_args(kind))
    names = f"{flag}/--no-{flag[2:]}" if switch else flag
    declared = typer.Option(names, help=f"Old name of {_flag(new)}.", hidden=True)
    return Annotated[kind | None, declared], None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _warn_of_old_name(old: str, new: str) -> None:
    warn(f"{_flag(old)} is now {_flag(new)}; the next release removes the old name")


def _describe_default(item: "dataclasses.Field[Any]") -> str:
    parts = [f"default: {item.metadata['auto'] or (item.default if item.default != '' else 'none')}"]
    if any(choice not in item.metadata["help"] for choice in item.metadata["choices"]):
        parts.insert(0, ", ".join(item.metadata["choices"]))  # unlike "|", it allows line breaks
    least, most = item.metadata["least"], item.metadata["most"]
    if least is not None:
        least = max(0, least) if item.metadata["auto"] else least  # a number below selects the default
        parts.insert(0, f"{least} to {most}" if most is not None else f"at least {least}")
    return "; ".join(parts)


def _fields(arguments: dict[str, Any]) -> Fields:
    fields: Fields = {}
    for key, value in arguments.items():
        if value is not None:
            section, _, name = key.partition("__")
            if new := RENAMED.get(section, {}).get(name):
                _warn_of_old_name(name, new)
            fields.setdefault(section, {})[name] = value
    return fields


def resolve(given: dict[str, Any], fields: Fields, flags: Flags = RUN_FLAGS, *, continues: bool = True) -> Config:
    """Build the configuration of a command from the recorded run or bundle, preset, ``--config`` file and flags.

    The options of the bundle are exceptions from the gate: they hold only for the command that they are given to.
    """
    file = load_config_file(given["config"]) if given["config"] else {}
    recorded = _recorded(given)
    preset = given.get("preset") or ""
    if "preset" in given and file.get("preset") != recorded.get("preset"):
        preset = preset or str(file.get("preset", ""))
    # Earlier versions trained grey images in RGB.
    earlier = {"data": {"color": "rgb"}} if "data" in recorded and "color" not in recorded["data"] else {}
    recorded = {section: recorded[section] for section in recorded if section != "bundle"}
    recorded = recorded if continues and not preset else {}
    known, source = source_of(recorded), source_of(recorded, file, fields)
    if known.startswith(WINDOWS) != source.startswith(WINDOWS):
        recorded = {}  # these are options of the other kind of data
    return build_config(earlier, recorded, file, fields, preset=preset or recorded.get("preset", ""), flags=flags)


def _recorded(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the measured bundle or of the continued run (none: an empty mapping)."""
    if given.get("bundle"):
        from kdedge.export.bundle.predict import read_bundle
        from kdedge.export.bundle.verify import read_manifest

        manifest = read_manifest(given["bundle"])
        made_with, gate = manifest["config"], manifest["facts"].get("history", {}).get("gate", {})
        color = "grey" if read_bundle(given["bundle"])[1].grey else "rgb"
        data = {**made_with.get("all data", {}), "color": color}
        judged = {key: gate[key] for key in ("limit_pp", "metric") if key in gate}
        return {"data": data, "runtime": made_with.get("seed", {}), "benchmark": judged}
    if "out" not in given:
        return {}
    from kdedge.pipeline.run import recorded_config

    return recorded_config(given["out"])


def load_config_file(path: Path) -> dict[str, Any]:
    """Read a TOML configuration file (tables as in `Config`) or the ``config.json`` of a run.

    Raises:
        InputError: The file cannot be read or parsed.
    """
    try:
        config = read_json(path) if path.suffix == ".json" else read_toml(path)
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}", "check --config") from error
    except ValueError as error:
        kind = path.suffix.lstrip(".").upper() or "TOML"
        raise InputError(f"{path} is not valid {kind}: {error}", "write a table per section: [distill]") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is a {type(config).__name__}, expected an object with a key per section")
    return config

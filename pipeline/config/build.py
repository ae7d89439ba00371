"""Builds a checked `Config` from presets, recipes and layers of options."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kdedge.errors import InputError
from kdedge.parsing import closest
from kdedge.pipeline.config import SECTIONS, Config
from kdedge.pipeline.config.checks import RUN_FLAGS, Flags, check_value, conflicts
from kdedge.pipeline.data.options import WINDOWS, DataConfig
from kdedge.pipeline.distill.options import DistillConfig

__all__ = ["PRESETS", "RECIPES", "RENAMED", "build_config", "preset_for", "source_of"]

# Old and new names of options by section; ``study`` has the options of a study, which no configuration file sets.
RENAMED: dict[str, dict[str, str]] = {
    "distill": {"drop_hints": "adapt_to_teacher", "hint_layers": "hint_blocks"},
    "benchmark": {"beside": "compare_with"},
    "study": {"reach": "target_accuracy"},
}

# `sample` is taken for --data sample when no preset is named: two minutes of training on two cores, where the epochs of
# the default take seven (experiments/LOG.md, section 52).
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "sample": {
        "teacher": {"epochs": 3},
        "distill": {"epochs": 10},
        "quantize": {"compare_formats": False},
        "benchmark": {"seconds": 1.0},
    },
    # Taken for --data windows:PATH when no preset is named.
    "windows": {"data": {"val_fraction": 0.2}, "distill": {"student": "signal", "shift": 8}},
    "reference": {"teacher": {"epochs": 30}, "distill": {"epochs": 40}},
    # The ingredients that helped in long trainings: experiments/LOG.md, sections 43, 45, 47 and 78.
    "best": {
        "teacher": {"epochs": 60, "cutout": 12, "hard_epochs": 12},
        "distill": {"method": "kd", "epochs": 200},
    },
}

# A layer above the preset and below the given options. `source` is the recipe in the source of the method: no
# augmentation, no schedule, hints as plain MSE, and the default initial weights and optimizer of PyTorch.
RECIPES: dict[str, dict[str, Any]] = {
    "source": {
        "batch_size": 64,
        "optimizer": "adam",
        "schedule": "constant",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "init": "random",
        "norm_bias_lr": 1.0,
        "refresh_norms": False,
        "adapt_to_teacher": False,
        "temperature": 4.0,
        "beta": 250.0,
        "hint_loss": "raw",
        "shift": 0,
        "flip": False,
    },
}
RECIPES["kdedge"] = {
    item.name: item.default for item in dataclasses.fields(DistillConfig) if item.name in RECIPES["source"]
}


def build_config(
    *layers: Mapping[str, Any], preset: str = "", flags: Flags = RUN_FLAGS, consistent: bool = True
) -> Config:
    """Merge configuration layers over the preset, later layers winning.

    A layer with another recipe than the layers below it also has the values of that recipe, below its own values.

    Args:
        layers: Nested mappings ``{section: {key: value}}``; a layer may name its ``preset``.
        preset: Name of the preset; empty: the last layer that names one, else ``sample`` for the shipped sample,
            ``windows`` for signals and ``default`` for everything else.
        flags: The command's names of options.
        consistent: Whether contradictions between options are errors.

    Raises:
        InputError: Unknown sections, keys or choices, wrong types, values out of range: all in one message.
    """
    problems: list[str] = []
    for layer in reversed(layers):
        preset = preset or str(layer.get("preset", ""))
    preset = preset or preset_for(source_of(*layers))
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}{closest(preset, PRESETS)}", f"presets: {', '.join(PRESETS)}")
    merged: dict[str, dict[str, Any]] = {"distill": {"recipe": DistillConfig.recipe}}
    for layer in (PRESETS[preset], *layers):
        for section, values in layer.items():
            if section == "preset":
                continue
            if section not in SECTIONS:
                problems.append(
                    f"unknown section [{section}]{closest(section, SECTIONS)}: expected one of {', '.join(SECTIONS)}"
                )
            elif not isinstance(values, Mapping):
                problems.append(f"{section} = {values!r}: expected a table [{section}]")
            else:
                into = merged.setdefault(section, {})
                if section == "distill" and values.get("recipe", into["recipe"]) != into["recipe"]:
                    into.update(RECIPES.get(str(values["recipe"]), {}))
                into.update(_renamed(section, values))
    sections = {section: _build_section(section, values, problems) for section, values in merged.items()}
    if consistent and not problems:
        problems = conflicts(sections.get("data", DataConfig()), sections.get("distill", DistillConfig()), flags)
    if problems:
        text = problems[0] if len(problems) == 1 else "\n".join(["several problems:", *(f"  - {p}" for p in problems)])
        raise InputError(text, "see `kdedge run-all --help-all` for every option and its range")
    return Config(preset=preset, **sections)


def source_of(*layers: Mapping[str, Any]) -> str:
    """Return the data set of the last layer that names one; empty: none does."""
    sections = [layer.get("data") for layer in reversed(layers)]
    sources = (str(section.get("source") or "") for section in sections if isinstance(section, Mapping))
    return next(filter(None, sources), "")


def preset_for(source: str) -> str:
    """Return the preset for a data set."""
    if source.startswith(WINDOWS):
        return "windows"
    return "sample" if source == "sample" else "default"


def _renamed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a section by the new names of its options."""
    names = RENAMED.get(section, {})
    return {names.get(key, key): value for key, value in values.items()}


def _build_section(section: str, values: Mapping[str, Any], problems: list[str]) -> Any:
    """Build the dataclass of a section, unless there are problems; append errors in its values to ``problems``."""
    known = {item.name: item for item in dataclasses.fields(SECTIONS[section])}
    clean = {}
    for key, value in values.items():
        if key in known:
            clean[key] = check_value(section, known[key], value, problems)
        else:
            problems.append(
                f"unknown key {key!r} in [{section}]{closest(key, known)}: expected one of {', '.join(known)}"
            )
    return None if problems else SECTIONS[section](**clean)

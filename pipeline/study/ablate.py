"""One-factor ablations: a base run, and runs that differ from it in one option each.

    kdedge ablate --epochs 20 --seeds 0,1,2 --factors lr,temperature --out artifacts/ablate

Cells, tables and figures are as in `kdedge.pipeline.study.compare`; the control is the base.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.dataset import split_train_val
from kdedge.errors import InputError
from kdedge.parsing import parse_choices
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import RECIPES
from kdedge.pipeline.config.checks import ABLATE_FLAGS
from kdedge.pipeline.data.sources import opened
from kdedge.pipeline.distill.methods import METHODS, Method
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.study.cells import Cell, Study, variant
from kdedge.pipeline.study.compare import StudyOptions, run_study
from kdedge.pipeline.training.length import batch_size
from kdedge.progress import warn

__all__ = ["BASE", "FACTORS", "Factor", "ablate"]

BASE = "base"


@dataclass(frozen=True)
class Factor:
    """A varied option.

    Attributes:
        values: Returns the values other than the base's by name, each as a set of distillation options.
        applies: Whether the option has an effect in runs of a method.
        needs: Property of a method that this requires, for messages.
    """

    values: Callable[[DistillConfig], dict[str, dict[str, Any]]]
    applies: Callable[[Method], bool] = lambda method: True
    needs: str = ""


def _each(key: str, *values: Any) -> Callable[[DistillConfig], dict[str, dict[str, Any]]]:
    """Return the values of one option other than the base's."""
    return lambda base: {str(value): {key: value} for value in values if getattr(base, key) != value}


def _optimizers(base: DistillConfig) -> dict[str, dict[str, Any]]:
    # Each optimizer has its own learning rate. Adam's steps do not depend on the size of a gradient, so 64 times the
    # rate would be too high for any parameter.
    options = {
        "sgd": {"optimizer": "sgd", "lr": RECIPES["kdedge"]["lr"]},
        "adam": {"optimizer": "adam", "lr": RECIPES["source"]["lr"], "norm_bias_lr": 1.0},
    }
    return {name: option for name, option in options.items() if name != base.optimizer}


def _learning_rates(base: DistillConfig) -> dict[str, dict[str, Any]]:
    # 5e-4 and 2e-3 for the source's Adam.
    peak = base.peak_lr(base.batch_size, loaded=False)
    return {f"{lr:g}": {"lr": lr} for lr in (peak / 2, peak * 2)}


def _betas(base: DistillConfig) -> dict[str, dict[str, Any]]:
    return {f"{beta:g}": {"beta": beta} for beta in (base.beta / 10, base.beta * 10)}


def _hint_losses(base: DistillConfig) -> dict[str, dict[str, Any]]:
    # Beta has another unit in each, so each has the beta of its recipe.
    options = {
        loss: {"hint_loss": loss, "beta": RECIPES[recipe]["beta"]}
        for loss, recipe in (("raw", "source"), ("normalised", "kdedge"))
    }
    return {name: option for name, option in options.items() if name != base.hint_loss}


FACTORS = {
    "optimizer": Factor(_optimizers),
    "lr": Factor(_learning_rates),
    "temperature": Factor(_each("temperature", 2.0, 4.0), lambda method: method.kd, "logits of the teacher"),
    "beta": Factor(_betas, lambda method: method.blocks is not None, "hints"),
    "beta-patience": Factor(_each("beta_patience", 1, 2), lambda method: method.adaptive_beta, "an adaptive beta"),
    "hint-blocks": Factor(
        _each("hint_blocks", 2, 3),
        lambda method: "hint_blocks" not in method.unused,
        "a number of blocks to choose",
    ),
    "hint-loss": Factor(_hint_losses, lambda method: method.blocks is not None, "hints"),
    "recipe": Factor(_each("recipe", "source", "kdedge")),
}


def ablate(config: Config, out: Path, factors: str, options: StudyOptions) -> dict[str, Any]:
    """Vary one factor at a time; return what `run_study` returns.

    Args:
        config: The base.
        out: Directory of the study.
        factors: Names, comma-separated (none: all with an effect in runs of the base's method).
        options: Options of the study.

    Raises:
        InputError: An unknown factor, a factor without effect, or contradicting options.
        StageError: A stage failed.
    """
    method = METHODS[config.distill.method]
    names = [name for name, factor in FACTORS.items() if factor.applies(method)]
    if "hint-layers" in factors:
        warn("--factors hint-layers is now hint-blocks; the next release removes the old name")
        factors = factors.replace("hint-layers", "hint-blocks")
    if factors:
        names = parse_choices(factors, "--factors", tuple(FACTORS))
    for name in names:
        if not FACTORS[name].applies(method):
            raise InputError(
                f"--factors {name} has no effect on --method {config.distill.method}, "
                f"which lacks {FACTORS[name].needs}",
                "leave it out, or use another --method",
            )

    base = _with_batch_size(config)

    def make(config: Config, name: str, epochs: int, seed: int) -> Cell:
        factor, _, value = name.partition("=")
        varied = {} if name == BASE else FACTORS[factor].values(base)[value]
        return Cell(name, variant(config, {"epochs": epochs, **varied}, seed, ABLATE_FLAGS))

    study = Study(f"Ablations of {config.distill.method}", BASE, _names(FACTORS, base), make)
    return run_study(study, _names(names, base), config, out, options)


def _with_batch_size(config: Config) -> DistillConfig:
    """Return the options of the base with the images per step of its training, if they decide its learning rate."""
    base, data = config.distill, config.data
    if base.lr:
        return base
    dataset = opened(data)
    train, _ = split_train_val(dataset.undecoded(), data.val_fraction, data.train_size)
    size = base.batch_size or batch_size(len(train), dataset.spec.shape)
    return dataclasses.replace(base, batch_size=min(size, len(train)))


def _names(factors: Iterable[str], base: DistillConfig) -> list[str]:
    """Return the name of the base and the names of the cells that vary some factors."""
    return [BASE, *(f"{name}={value}" for name in factors for value in FACTORS[name].values(base))]

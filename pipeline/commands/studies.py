"""Commands that compare many runs: compare, ablate."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer

from kdedge.errors import InputError
from kdedge.parsing import parse_counts
from kdedge.pipeline.commands.flags import BEGINNING, JSON, Fields, Options, cli_option, configured, out_option
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.checks import ABLATE_FLAGS, COMPARE_FLAGS, Flags
from kdedge.pipeline.config.shareable import shareable
from kdedge.pipeline.distill.methods import CONTROL, METHODS
from kdedge.pipeline.training.distributed import refuse
from kdedge.pipeline.training.options import TeacherConfig

__all__ = ["app"]

app = typer.Typer()

_STUDIES = "More commands: studies"

# Options of a study in addition to those of its runs; see `kdedge.pipeline.study.compare.StudyOptions`.
_STUDY: Options = {
    "epochs": cli_option("--epochs", "Numbers of epochs of distillation, comma-separated.", str, "20"),
    "seeds": cli_option("--seeds", "Seeds of the runs, comma-separated.", str, "0"),
    "teacher_dir": cli_option(
        "--teacher-dir", "Directory of a finished teacher, such as artifacts/run/teacher. Default: train one.",
        Path | None, None, metavar="path",
    ),
    "target_accuracy": cli_option(
        "--target-accuracy", "Report the first epoch with this validation top-1, in percent.", float, 85.0,
        min=0, max=100,
    ),
    "jobs": cli_option(
        "--jobs", "Number of runs to train in parallel. Each is a process with its share of the threads.", int, 1,
        min=1, max=1024,
    ),
    "launcher": cli_option(
        "--launcher",
        "Where to train the runs: local (processes of this host), slurm (an array of jobs; --jobs above 1 limits it) "
        "or print (print the commands that train them).",
        str, "local",
    ),
    "shard": cli_option("--shard", "Train part K of N of the runs, such as 2/8.", str, "1/1", metavar="K/N"),
    "slurm": cli_option(
        "--slurm", "Option of sbatch, such as partition=gpu; repeat it for more.", list[str], (), metavar="KEY=VALUE"
    ),
    "test": cli_option(
        "--test", "After all training, quantize every student and measure it on the test data.", bool, False
    ),
    "force": cli_option("--force", "Replace finished runs that have other options or another teacher.", bool, False),
} | JSON  # fmt: skip
_SHARED = ("out", "data__source", "data__image_size", "distill__student")  # of the options of all runs
_METHODS: Options = {
    "methods": cli_option("--methods", "Methods to compare, comma-separated.", str, ",".join(METHODS)),
}
_FACTORS: Options = {
    "factors": cli_option(
        "--factors",
        "Options to vary, comma-separated: optimizer, lr, temperature, beta, beta-patience, hint-blocks, hint-loss, "
        "recipe. Default: all that affect the method.",
        str, "",
    ),
}  # fmt: skip


def _prepare(given: dict[str, Any], fields: Fields, flags: Flags) -> Flags:
    """Check the options of a study and complete its fields; return ``flags``."""
    if given["teacher_dir"] and "teacher" in fields:
        names = [item.metadata["flag"] for item in dataclasses.fields(TeacherConfig) if item.name in fields["teacher"]]
        raise InputError(
            f"--teacher-dir names a finished teacher, which {', '.join(names)} would not change",
            "leave out one of them",
        )
    # Every cell is checked with its length and method. The shared options are checked with the longest, and with the
    # method that contradicts no option.
    shared = fields.setdefault("distill", {})
    shared["epochs"] = max(parse_counts(given["epochs"], flags.epochs, 100_000))
    if "methods" in given:
        shared["method"] = CONTROL
    return flags


@app.command(
    help="Compare distillation methods over training lengths and seeds, with one teacher.", rich_help_panel=_STUDIES
)
@configured(
    ("data", "teacher", "distill", "training", "runtime", "tracking"),
    BEGINNING | out_option(Path("artifacts/compare")) | _METHODS | _STUDY,
    without=("distill__method", "distill__epochs", "runtime__seed", "refresh"),
    first=(*_METHODS, *_STUDY, *_SHARED),
    continues=False,
    prepare=partial(_prepare, flags=COMPARE_FLAGS),
)
def compare(config: Config, out: Path, methods: str, as_json: bool, **options: Any) -> None:
    """Run the comparison; print its page or one JSON line."""
    from kdedge.pipeline.study.compare import compare as run_comparison

    _study(config, lambda rest: run_comparison(config, out, methods, rest), out, as_json, options)


@app.command(help="Vary one training option at a time, with one teacher.", rich_help_panel=_STUDIES)
@configured(
    ("data", "teacher", "distill", "training", "runtime", "tracking"),
    BEGINNING | out_option(Path("artifacts/ablate")) | _FACTORS | _STUDY,
    without=("distill__epochs", "runtime__seed", "refresh"),
    first=(*_FACTORS, *_STUDY, *_SHARED, "distill__method"),
    continues=False,
    prepare=partial(_prepare, flags=ABLATE_FLAGS),
)
def ablate(config: Config, out: Path, factors: str, as_json: bool, **options: Any) -> None:
    """Run the ablations; print their page or one JSON line."""
    from kdedge.pipeline.study.ablate import ablate as run_ablations

    _study(config, lambda rest: run_ablations(config, out, factors, rest), out, as_json, options)


def _study(
    config: Config, run: Callable[[Any], dict[str, Any]], out: Path, as_json: bool, options: dict[str, Any]
) -> None:
    """Run a study and print its page, or the commands that train its cells."""
    refuse("a study")
    from kdedge.pipeline.study.compare import StudyOptions

    rest = StudyOptions(command=shlex.join(["kdedge", *shareable(sys.argv[1:])]), **options)
    try:
        result = run(rest)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to resume") from None
    if as_json:
        print(json.dumps(result))
    elif "commands" in result:
        print(*result["commands"], sep="\n", end="\n" * bool(result["commands"]))
    elif "page" in result:
        print(Path(result["page"]).read_text(encoding="utf-8"))

"""The ``kdedge`` command: parses, calls a stage, prints.

Every field of `pipeline.config` becomes a flag here; nothing heavy is imported before a command needs it. Progress and
log lines go to stderr, results to stdout.

    kdedge run-all --data sample --out artifacts/demo
"""

import dataclasses
import functools
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pipeline.config import (
    PRESETS,
    Config,
    TeacherConfig,
    build_config,
    load_config_file,
    parse_counts,
    parse_emulated,
    shareable,
)
from pipeline.distill.methods import METHODS
from pipeline.errors import GateError, InputError, KdedgeError
from pipeline.progress import console, log, set_quiet

__all__ = ["app"]

# The base of everything that Typer finds wrong with a command line; it lies in click or, later, in Typer's copy of it.
_UsageError: Any = typer.BadParameter.__base__


class _Commands(TyperGroup):
    """The commands; wrong usage is shown as every other error is."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _UsageError as error:
            if not error.format_message():  # no command: Typer has printed the help
                sys.exit(error.exit_code)
            command = error.ctx.command_path if error.ctx else "kdedge"
            _show_error(error.format_message(), f"see `{command} --help`")
            code = error.exit_code
        sys.exit(code)


app = typer.Typer(
    cls=_Commands,
    help="From a data set to a small INT8 model that is proven on the edge, in one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: kdedge run-all --data sample --out artifacts/demo",
)

DEFAULT_OUT = Path("artifacts/run")

# Which extra installs a module that the base install lacks.
_EXTRAS = {"onnxruntime": "cpu"} | dict.fromkeys(("torch", "torchvision", "onnx", "onnxscript", "safetensors"), "train")

_SECTIONS: dict[str, Any] = {
    item.name: item.default_factory for item in dataclasses.fields(Config) if item.name != "preset"
}
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "bundle": (
        Annotated[Path | None, typer.Argument(help="Bundle to measure on this host; without it the run at --out.")],
        None,
    ),
    # Text, because an empty path is the current directory.
    "out": (Annotated[str, typer.Option("--out", help="Run directory.", metavar="path")], str(DEFAULT_OUT)),
    "config": (
        Annotated[Path | None, typer.Option("--config", help="TOML file with a table per section.", metavar="path")],
        None,
    ),
    "preset": (
        Annotated[
            str | None,
            typer.Option(
                "--preset",
                help=f"Named settings: {', '.join(PRESETS)}. The later stages go on with those of the run.",
                metavar="str",
            ),
        ],
        None,
    ),
    "force": (
        Annotated[bool, typer.Option("--force", help="Run again even if everything is up to date.", metavar="")],
        False,
    ),
    "quiet": (
        Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results and warnings.", metavar="")],
        False,
    ),
}
# What a study has beside the options of its runs; see `pipeline.study.compare.StudyOptions`.
_STUDY: dict[str, tuple[Any, Any]] = {
    "epochs": (
        Annotated[str, typer.Option("--epochs", help="Lengths of the runs, comma-separated.", metavar="str")],
        "20",
    ),
    "seeds": (
        Annotated[str, typer.Option("--seeds", help="Their seeds, comma-separated.", metavar="str")],
        "0",
    ),
    "teacher_dir": (
        Annotated[
            Path | None,
            typer.Option(
                "--teacher-dir",
                help="Finished teacher, as in artifacts/run/teacher (default: one is trained).",
                metavar="path",
            ),
        ],
        None,
    ),
    "reach": (
        Annotated[
            float,
            typer.Option(
                "--reach",
                min=0,
                max=100,
                metavar="float",
                help="Report the first epoch with this validation top-1, in percent.",
            ),
        ],
        85.0,
    ),
    "test": (
        Annotated[
            bool,
            typer.Option(
                "--test",
                help="At the end, when all is chosen, also quantize every student and read the test images once.",
                metavar="",
            ),
        ],
        False,
    ),
    "as_json": (
        Annotated[bool, typer.Option("--json", help="Print one JSON line instead of the page.", metavar="")],
        False,
    ),
}
_OPTIONS |= _STUDY | {
    "methods": (
        Annotated[str, typer.Option("--methods", help="Methods to compare, comma-separated.", metavar="str")],
        ",".join(METHODS),
    ),
    "factors": (
        Annotated[
            str,
            typer.Option(
                "--factors",
                help="What to vary, comma-separated: optimizer, lr, temperature, beta-patience, hint-layers, "
                "hint-loss, recipe (default: all that matter to the method).",
                metavar="str",
            ),
        ],
        "",
    ),
}
_STAGE = ("out", "config", "force", "quiet")
# What begins a run states its options; the later stages go on with those of the run.
_BEGINNING = ("out", "config", "preset", "force", "quiet")
_CONSUMED = ("config", "preset", "quiet")  # before the function of a command is called


def _reported(function: Callable[..., None]) -> Callable[..., None]:
    """Show a `KdedgeError` as one message with what to do next, and end with its exit code."""

    @functools.wraps(function)
    def wrapper(**arguments: Any) -> None:
        set_quiet(arguments.get("quiet", False))
        try:
            function(**arguments)
            # A reader that went away (`kdedge … | head`) is met here, where Typer ends quietly, not at exit.
            sys.stdout.flush()
        except KdedgeError as error:
            _show_error(str(error), error.hint)
            raise typer.Exit(error.exit_code) from None
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            _show_error(f"this command needs {error.name}, which is not installed", f"pip install 'kdedge[{extra}]'")
            raise typer.Exit(2) from None
        except MemoryError:
            _show_error("not enough memory", "lower --image-size or --train-size")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as interrupt:
            console.print("; ".join(["interrupted", *interrupt.args]), markup=False)
            raise typer.Exit(130) from None

    return wrapper


def _show_error(message: str, hint: str) -> None:
    sys.stdout.flush()  # where both go to one file, results stand before the error that ended them
    console.print(f"error: {message}", style="red" if console.is_terminal else None, markup=False)
    if hint:
        console.print(f"  -> {hint}", markup=False)


def _stage_command(
    name: str,
    sections: tuple[str, ...],
    help: str,
    options: tuple[str, ...] = _STAGE,
    *,
    out: Path = DEFAULT_OUT,
    without: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], None]:
    """Register a command whose flags are ``options`` and the fields of ``sections`` but those ``without``.

    The decorated function is called with the configuration and the options that did not go into it.
    """

    def register(function: Callable[..., None]) -> None:
        @_reported
        def command(**arguments: Any) -> None:
            given = {key: arguments.pop(key) for key in options}
            for key in ("out", "preset"):
                if given.get(key) == "":
                    raise InputError(f"--{key} is empty", f"leave it out for the default; see `kdedge {name} --help`")
            if "out" in given:
                given["out"] = Path(given["out"])
            layer = _sections_from_flags(arguments)
            rest = {key: value for key, value in given.items() if key not in _CONSUMED}
            if "epochs" not in given:
                function(_resolve(given, layer), **rest)
                return
            with _study_flags(given, layer):
                function(_resolve(given, layer), **rest)

        flags = {key: option for key, option in _section_options(sections).items() if key not in without}
        own = {key: _OPTIONS[key] for key in options}
        if "out" in own:
            own["out"] = (own["out"][0], str(out))
        parameters = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for key, (annotation, default) in {**own, **flags}.items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, help=help)(command)

    return register


def _section_options(sections: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Return (annotation, default) of a Typer option for every field of these sections, by ``section__field``."""
    options: dict[str, tuple[Any, Any]] = {}
    for section in sections:
        for item in dataclasses.fields(_SECTIONS[section]):
            flag = item.metadata["flag"]
            if not flag:
                continue
            kind = type(item.default)
            names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
            text = f"{item.metadata['help']} ({_describe_default(item)})"
            declared = typer.Option(
                *names,
                help=text,
                rich_help_panel=section,
                show_default=False,
                metavar="" if kind is bool else kind.__name__,
            )
            options[f"{section}__{item.name}"] = (Annotated[kind | None, declared], None)
    return options


def _describe_default(item: "dataclasses.Field[Any]") -> str:
    parts = [f"default: {item.default if item.default != '' else 'none'}"]
    if item.metadata["choices"]:
        parts.insert(0, ", ".join(item.metadata["choices"]))  # can be broken into lines, which "|" cannot
    least, most = item.metadata["least"], item.metadata["most"]
    if least is not None:
        parts.insert(0, f"{least} to {most}" if most is not None else f"at least {least}")
    return "; ".join(parts)


def _sections_from_flags(arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    layer: dict[str, dict[str, Any]] = {}
    for key, value in arguments.items():
        if value is not None:
            section, _, name = key.partition("__")
            layer.setdefault(section, {})[name] = value
    return layer


def _resolve(given: dict[str, Any], flags: dict[str, dict[str, Any]]) -> Config:
    """Build the configuration of a command: recorded run or bundle, preset, ``--config`` file, flags."""
    file = load_config_file(given["config"]) if given["config"] else {}
    return build_config(_recorded(given), file, flags, preset=given.get("preset") or "")


def _recorded(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the bundle that a command measures or of the run that it goes on with; empty: neither."""
    if given.get("bundle"):
        from pipeline.artifacts import load_manifest

        made_with = load_manifest(given["bundle"])["config"]
        return {"data": made_with.get("all data", {}), "runtime": made_with.get("seed", {})}
    if "preset" in given or "out" not in given:
        return {}
    from pipeline.stages import recorded_config

    return recorded_config(given["out"])


@contextmanager
def _study_flags(given: dict[str, Any], flags: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Check the flags of a study and complete them; name the flag that it has in errors that arise meanwhile."""
    if given["teacher_dir"] and "teacher" in flags:
        names = [item.metadata["flag"] for item in dataclasses.fields(TeacherConfig) if item.name in flags["teacher"]]
        raise InputError(
            f"--teacher-dir names a finished teacher, which {', '.join(names)} would not change",
            "leave out the one or the others",
        )
    # Every cell has its own length and is checked with it; what all share is checked with the longest.
    flags.setdefault("distill", {})["epochs"] = max(parse_counts(given["epochs"], "--epochs", 100_000))
    try:
        yield
    except InputError as error:
        error.args = (str(error).replace("--distill-epochs", "--epochs"),)
        raise


def _run(names: tuple[str, ...], config: Config, out: Path, force: bool) -> bool:
    from pipeline.artifacts import lock_run
    from pipeline.stages import run_stages

    with lock_run(out):
        try:
            return run_stages(names, config, out, force=force)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on where it stopped") from None


@_stage_command("run-all", tuple(_SECTIONS), "Run every stage in order: data set to verified bundle.", _BEGINNING)
def run_all(config: Config, out: Path, force: bool) -> None:
    """Run the pipeline and print the summary."""
    from pipeline.stages import STAGES

    try:
        if not _run(tuple(STAGES), config, out, force):
            log(f"nothing to do: every stage of {out} is up to date (--force runs them again)")
    except GateError:
        _print_report(out / "benchmark")
        raise
    _print_report(out / "benchmark")
    print(f"bundle: {out / 'bundle'}\n  kdedge verify {out / 'bundle'}\n  kdedge predict {out / 'bundle'} IMAGE")


@_stage_command("data", ("data", "runtime"), "Fetch and check the data set; print what it holds.", ("config", "quiet"))
def data(config: Config) -> None:
    """Print the data set as one JSON line."""
    from pipeline.data import open_dataset, split_train_val

    dataset = open_dataset(config.data, config.runtime.seed)
    train, val = split_train_val(dataset.train(), config.data.val_fraction, config.runtime.seed, config.data.train_size)
    facts = {
        "data": dataset.name,
        "classes": list(dataset.class_names),
        "image_size": dataset.image_size,
        "train": len(train.labels),
        "val": len(val.labels),
        "train_sha256": dataset.train_sha256(),
        "test_sha256": dataset.test_sha256(),
    }
    print(json.dumps(facts))


@_stage_command("teacher", ("data", "teacher", "runtime"), "Fine-tune the teacher.", _BEGINNING)
def teacher(config: Config, out: Path, force: bool) -> None:
    """Run the teacher stage."""
    _run(("teacher",), config, out, force)
    print(out / "teacher")


@_stage_command("distill", ("data", "distill", "runtime"), "Distill the teacher into the student.")
def distill(config: Config, out: Path, force: bool) -> None:
    """Run the distillation stage."""
    _run(("distill",), config, out, force)
    print(out / "distill")


@_stage_command("export", ("export",), "Export the student to ONNX and check parity.")
def export(config: Config, out: Path, force: bool) -> None:
    """Run the export stage."""
    _run(("export",), config, out, force)
    print(out / "export" / "student.onnx")


@_stage_command("quantize", ("data", "quantize"), "Quantize the ONNX model to INT8, calibrated on training images.")
def quantize(config: Config, out: Path, force: bool) -> None:
    """Run the quantization stage."""
    _run(("quantize",), config, out, force)
    print(out / "quantize" / "student.int8.onnx")


@_stage_command(
    "benchmark",
    ("data", "benchmark", "bundle"),
    "Measure accuracy and latency of a run, or of a bundle on this host, and judge it.",
    ("bundle", *_STAGE),
)
def benchmark(config: Config, out: Path, force: bool, bundle: Path | None) -> None:
    """Measure, print the summary and end stdout with one JSON line."""
    from pipeline.artifacts import lock_run

    if bundle is None:
        _run(("benchmark",), config, out, force)
        report_dir = out / "benchmark"
    else:
        from pipeline.evaluate import benchmark_bundle

        report_dir = out if out != DEFAULT_OUT else Path("artifacts/benchmark")
        with lock_run(report_dir):
            benchmark_bundle(config, bundle, report_dir)
    report = _print_report(report_dir)
    keys = ("accuracy", "gate", "size", "latency", "memory", "portability")
    print(json.dumps({"report": str(report_dir / "report.json"), **{key: report[key] for key in keys}}))

    from export.bundle import check_gate

    check_gate(report, allow_undecided=config.bundle.allow_undecided)


@_stage_command("bundle", ("data", "bundle"), "Write the bundle, if the gate passed.")
def bundle(config: Config, out: Path, force: bool) -> None:
    """Run the bundle stage."""
    _run(("bundle",), config, out, force)
    print(out / "bundle")


@_stage_command(
    "compare",
    ("data", "teacher", "distill", "runtime"),
    "Compare methods over lengths and seeds, all with one teacher.",
    (*_BEGINNING, "methods", *_STUDY),
    out=Path("artifacts/compare"),
    without=("distill__method", "distill__epochs", "runtime__seed"),
)
def compare(config: Config, out: Path, methods: str, as_json: bool, **options: Any) -> None:
    """Run the comparison; print its page or one JSON line."""
    from pipeline.study.compare import compare as run_comparison

    _study(lambda rest: run_comparison(config, out, methods, rest), out, as_json, options)


@_stage_command(
    "ablate",
    ("data", "teacher", "distill", "runtime"),
    "Vary one training option after the other, all with one teacher.",
    (*_BEGINNING, "factors", *_STUDY),
    out=Path("artifacts/ablate"),
    without=("distill__epochs", "runtime__seed"),
)
def ablate(config: Config, out: Path, factors: str, as_json: bool, **options: Any) -> None:
    """Run the ablations; print their page or one JSON line."""
    from pipeline.study.ablate import ablate as run_ablations

    _study(lambda rest: run_ablations(config, out, factors, rest), out, as_json, options)


def _study(run: Callable[[Any], dict[str, Any]], out: Path, as_json: bool, options: dict[str, Any]) -> None:
    """Run a study in its locked directory and print what it found."""
    from pipeline.artifacts import lock_run
    from pipeline.study.compare import StudyOptions

    rest = StudyOptions(command=shlex.join(["kdedge", *shareable(sys.argv[1:])]), **options)
    with lock_run(out):
        try:
            result = run(rest)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on where it stopped") from None
    print(json.dumps(result) if as_json else Path(result["page"]).read_text(encoding="utf-8"))


@app.command(help="Check a bundle: every file's SHA-256 and the golden outputs, here and on emulated CPUs.")
@_reported
def verify(
    *,
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    emulate: Annotated[
        list[str] | None,
        typer.Option(
            "--emulate",
            metavar="CPU",
            help="Run the INT8 model under qemu as well: haswell, cortex-a76, cortex-a72; repeated or comma-separated.",
        ),
    ] = None,
    emulate_images: Annotated[
        int,
        typer.Option("--emulate-images", min=0, help="So many test images under emulation, beside the golden inputs."),
    ] = 0,
    data: Annotated[str, typer.Option("--data", help="Their data set (default: the one of the bundle).")] = "",
    data_dir: Annotated[str, typer.Option("--data-dir", help="Folder with its files, as for `kdedge data`.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Verify a bundle; a mismatch, here or on an emulated CPU, ends with exit code 1."""
    from export.verify import check_flips, emulate_bundle, verify_bundle

    cpus = parse_emulated(",".join(emulate or ()), "--emulate")
    if not cpus and (emulate_images or data or data_dir):
        raise InputError("--emulate-images, --data and --data-dir are for --emulate", "name a CPU: --emulate haswell")
    if (data or data_dir) and not emulate_images:
        raise InputError("--data and --data-dir are for --emulate-images", "say how many: --emulate-images 1000")
    result = verify_bundle(bundle)
    if cpus:
        tests = None
        if emulate_images:
            from export.emulate import check_emulators
            from pipeline.evaluate import sample_test_images

            check_emulators(cpus)  # before a data set is fetched
            given = {key: value for key, value in (("source", data), ("dir", data_dir)) if value}
            config = _resolve({"bundle": bundle, "config": None}, {"data": given})
            tests = sample_test_images(config, bundle, emulate_images)
        result["emulated"] = emulate_bundle(bundle, cpus, tests)
    if as_json:
        print(json.dumps(result))
    for row in result.get("emulated", ()):
        if not as_json:
            largest = f"largest logit difference {row['max_abs_diff']:.3g} ({100 * row['max_rel_diff']:.2g} %)"
            seen = largest if row["max_abs_diff"] else "logits identical"
            print(f"{row['cpu']}: {row['images']} images, {row['flips']} flips, {seen}, {row['seconds']:.0f} s")
    check_flips(result.get("emulated", ()), (bundle / "labels.txt").read_text(encoding="utf-8").splitlines())
    if not as_json:
        print(f"verified: {bundle}\n  {result['files']} files, manifest.json has SHA-256 {result['manifest_sha256']}")


@app.command(help="Classify images with a bundle.")
@_reported
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    images: Annotated[
        list[Path], typer.Argument(help="Images, folders, .npy files, or - for paths on standard input.")
    ],
    top: Annotated[int, typer.Option("--top", help="How many classes to show per image, best first.")] = 1,
    fp32: Annotated[bool, typer.Option("--fp32", help="Use the FP32 model instead of INT8.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
) -> None:
    """Print the label and its probability for each image."""
    from export.predict import predict as predict_images

    for row in predict_images(bundle, images, top_k=top, fp32=fp32):
        if as_json:
            print(json.dumps(row))
            continue
        # A name need not be text in the terminal's encoding.
        name = os.fsencode(row["file"]).decode(errors="replace")
        for answer in row.get("top", [row]):
            print(f"{answer['label']:<16} {100 * answer['probability']:6.2f} %  {name}")


@app.command(help="Print a report, compare two, or put more into a table: which student to ship.")
@_reported
def report(
    reports: Annotated[list[Path], typer.Argument(help="Run or benchmark directories, bundles, or report.json files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Also draw accuracy against latency, as .png or .svg.", metavar="path"),
    ] = None,
) -> None:
    """Print one report, what is different in another, or a table of several."""
    from benchmarks import pareto
    from benchmarks.compare_reports import compare_reports, comparison_markdown, load_report, print_comparison

    if as_json and markdown:
        raise InputError("--json and --markdown exclude each other", "give one of them")
    if figure and len(reports) == 1:
        raise InputError("--figure needs two reports or more", "name another: kdedge report A B --figure FILE.png")
    loaded, names = [load_report(path) for path in reports], [str(path) for path in reports]
    if len(loaded) == 1:
        from benchmarks.report import render_markdown

        print(json.dumps(loaded[0]) if as_json else render_markdown(loaded[0], []))
        return
    two = len(loaded) == 2
    result = compare_reports(loaded[0], loaded[1], names) if two else pareto.tabulate(loaded, names)
    if figure:
        pareto.check_same_host(loaded, names)
        pareto.draw_picture(pareto.tabulate(loaded, names), figure)
        log(f"figure: {figure}")
    if as_json:
        print(json.dumps(result))
    elif markdown:
        print(comparison_markdown(result) if two else pareto.table_markdown(result), end="")
    elif two:
        print_comparison(result)
    else:
        pareto.print_table(result)


@app.command(help="Show what this host can do, and whether a bundle was made for it.")
@_reported
def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle directory or model file: is this host what it was made for?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the host's capabilities: devices, instruction sets, execution providers, emulators."""
    from benchmarks.host import artifact_check, format_doctor
    from benchmarks.host import doctor as examine
    from export.emulate import emulation_checks

    facts = examine()
    facts["checks"] += emulation_checks()
    # Without onnxruntime no model can be asked, and that is the first check already.
    if bundle is not None and facts["host"] is not None:
        facts["checks"].insert(0, artifact_check(_model_of(bundle)))
    print(json.dumps(facts) if as_json else format_doctor(facts))


def _model_of(artifact: Path) -> Path:
    """Return the INT8 model of a bundle, or the model file that is meant.

    Raises:
        InputError: A folder that is no bundle.
        StageError: A bundle with a damaged manifest.
    """
    from export.verify import read_manifest

    if not artifact.is_dir():
        return artifact
    read_manifest(artifact)
    return artifact / "student.int8.onnx"


def _print_report(report_dir: Path) -> dict[str, Any]:
    """Print the summary of the report in a directory and return the report."""
    from benchmarks.report import print_summary

    report: dict[str, Any] = json.loads((report_dir / "report.json").read_text())
    print_summary(report)
    print(f"report: {report_dir / 'report.html'}")
    return report


if __name__ == "__main__":
    sys.exit(app())

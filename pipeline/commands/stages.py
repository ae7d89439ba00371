"""Commands of the pipeline: all stages, and each stage."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kdedge.errors import GateError, InputError, command
from kdedge.pipeline.commands.flags import (
    BEGINNING,
    DEFAULT_OUT,
    JSON,
    STAGE,
    Fields,
    Options,
    cli_option,
    configured,
    out_option,
)
from kdedge.pipeline.commands.gate import check_passed
from kdedge.pipeline.commands.model_input import OTHER_MODEL, normalisation, of_model, open_models, preprocessing_of
from kdedge.pipeline.config import SECTIONS, Config
from kdedge.pipeline.config.checks import RUN_ALL_FLAGS, RUN_FLAGS, Flags
from kdedge.pipeline.data.options import WINDOWS
from kdedge.pipeline.training.distributed import refuse
from kdedge.progress import log

__all__ = ["app"]

app = typer.Typer()

_STAGES = "More commands: single stages"
_BUNDLE: Options = {
    "bundle": (
        Annotated[Path | None, typer.Argument(help="Bundle to measure on this host. Default: the run at --out.")],
        None,
    ),
} | JSON
_OUT_OF_BUNDLE = out_option(
    None, f"Run directory, or folder for the report of a BUNDLE. Default: {DEFAULT_OUT}, or artifacts/benchmark."
)
_SIGN: Options = {
    "sign": cli_option(
        "--sign", "Private Ed25519 key (PEM) that signs manifest.json of the bundle.", Path | None, None, metavar="KEY"
    )
}
_DATA: Options = {
    "page_dir": cli_option(
        "--out", "Directory for the page data.html. Default: no page.", Path | None, None, metavar="path"
    )
}
_OUT_OF_MODEL = out_option(None, f"Run directory. Default: {DEFAULT_OUT}, or artifacts/MODEL of a MODEL.onnx.")
# The options in the README.
_FIRST = (
    "out", "data__source", "data__image_size", "teacher__weights", "distill__student", "distill__method",
    "distill__epochs", "quantize__target", "benchmark__limit_pp", "bundle__allow_undecided",
)  # fmt: skip
_SEVERAL: Options = {
    "tolerance": cli_option(
        "--tolerance",
        "Of several students, choose the cheapest whose INT8 validation accuracy is at most this many percentage "
        "points below the best.",
        float, 0.5,
    )
}  # fmt: skip
_TRAINING = ("out", "data__source", "data__image_size", "runtime__device", "force")
# `kdedge benchmark` has no --threads of a training, so its options need no prefix.
_BENCHMARK_SHORT = {f"benchmark__{name}": f"--{name}" for name in ("threads", "batches", "seconds")}


@app.command(help="Run all stages, from the data set to the bundle.")
@configured(
    tuple(SECTIONS),
    BEGINNING | _SEVERAL | _SIGN,
    first=_FIRST,
    continues=False,
    prepare=lambda given, fields: RUN_ALL_FLAGS,
)
def run_all(config: Config, out: Path, tolerance: float, sign: Path | None, **again: bool) -> None:
    """Run the pipeline and print the summary."""
    from kdedge.pipeline.stages.registry import STAGES
    from kdedge.pipeline.students import one_student

    signer, students = _signer(sign), list(dict.fromkeys(config.distill.student.split(",")))
    try:
        if len(students) > 1:
            any_ran = _run_several(students, config, out, tolerance, again)
        else:
            any_ran = _run(tuple(STAGES), one_student(config, students[0]), out, again)
        if not any_ran:
            log(f"nothing to do: every stage of {out} is up to date (--force runs them again)")
    except GateError as error:
        raise _without_reason(_print_report(out / "benchmark"), error) from None
    _print_report(out / "benchmark")
    signer(out / "bundle")
    _print_bundle(out / "bundle", "RECORDING.csv" if config.data.source.startswith(WINDOWS) else "IMAGE")


@app.command(help="Fetch the data set, check it and show its contents. Exit code 2: training cannot use it.")
@configured(("data",), _DATA | JSON | STAGE, without=("out", "force", "refresh"))
def data(config: Config, as_json: bool, page_dir: Path | None) -> None:
    """Print the data set as a table, or one JSON line if stdout is not a terminal, and write ``data.html``."""
    from kdedge.pipeline.data.summary import summarise
    from kdedge.pipeline.data.summary_text import check_page, print_summary, write_page

    if page_dir:
        from kdedge.pipeline.data.sources import check_outside, find_dataset

        check_page(page_dir)
        check_outside(find_dataset(config.data), page_dir)
    facts, images = summarise(config.data)
    page = write_page(facts, images, page_dir) if page_dir else None
    if as_json or not sys.stdout.isatty():
        print(json.dumps(facts | {"page": str(page)} if page else facts))
    else:
        print_summary(facts)
        if page:
            print(f"page: {page}")
    if unreadable := facts["unreadable"]:
        raise InputError(f"{len(unreadable):,} images cannot be read", "replace or remove these files")


@app.command(help="Fine-tune the teacher.", rich_help_panel=_STAGES)
@configured(
    ("data", "teacher", "training", "runtime", "tracking"),
    BEGINNING,
    first=(*_TRAINING, "teacher__arch", "teacher__weights", "teacher__epochs"),
)
def teacher(config: Config, out: Path, **again: bool) -> None:
    """Run the teacher stage."""
    _run(("teacher",), config, out, again)
    print(out / "teacher")


@app.command(help="Train the student with the teacher.", rich_help_panel=_STAGES)
@configured(
    ("data", "distill", "training", "runtime", "tracking"),
    first=(*_TRAINING, "distill__student", "distill__method", "distill__epochs"),
)
def distill(config: Config, out: Path, **again: bool) -> None:
    """Run the distillation stage."""
    _run(("distill",), config, out, again)
    print(out / "distill")


@app.command(help="Export the student to ONNX and compare it with PyTorch.", rich_help_panel=_STAGES)
@configured(("export",))
def export(config: Config, out: Path, **again: bool) -> None:
    """Run the export stage."""
    _run(("export",), config, out, again)
    print(out / "export" / "student.onnx")


def _of_bundle(given: dict[str, Any], fields: Fields) -> Flags:
    """Set the default of ``--out``, which differs for a bundle."""
    given["out"] = given["out"] or (Path("artifacts/benchmark") if given["bundle"] else DEFAULT_OUT)
    return RUN_FLAGS


@app.command(
    help="Quantize to INT8, calibrated on training data: the exported student of a run, or an ONNX classifier that "
    "kdedge did not train. Of such a classifier, the gate is then decided on the test data (exit code 3: it did not "
    "pass), and if it passed, latency is measured and the bundle is written.",
    short_help="Quantize the ONNX model to INT8, calibrated on training data.",
    rich_help_panel=_STAGES,
)
@configured(
    ("data", "quantize", "benchmark", "bundle"),
    OTHER_MODEL | STAGE | _OUT_OF_MODEL,
    first=(
        *OTHER_MODEL, "out", "data__source", "data__image_size", "data__resize", "quantize__calibration_images",
        "quantize__target", "benchmark__limit_pp", "benchmark__emulate", "bundle__allow_undecided",
    ),
    without=("data__layout",),
    prepare=of_model,
)  # fmt: skip
def quantize(
    config: Config,
    *,
    out: Path,
    model: Path | None,
    preprocessing: str,
    mean: str,
    std: str,
    scale: float | None,
    layout: str,
    **again: bool,
) -> None:
    """Run the quantization stage, or quantize another model."""
    if model is None:
        _run(("quantize",), config, out, again)
        print(out / "quantize" / "student.int8.onnx")
        return
    from kdedge.benchmarks.paired_gate import print_gate
    from kdedge.pipeline.quantize_other import measure_other, quantize_other

    classifier = open_models([model], layout, config.data.image_size)[0]
    floats = preprocessing_of([classifier], preprocessing, normalisation(mean, std, scale))
    gate = quantize_other(classifier, floats, config, out, **again)
    print_gate(gate)
    print(out / "quantize" / "student.int8.onnx")
    if not (gate["gate"]["verdict"] == "undecided" and config.bundle.allow_undecided):
        check_passed(gate, otherwise="; or ship it as not passed with --allow-undecided")
    measure_other(config, out, **again)
    print(out / "benchmark" / "report.html")
    _print_bundle(out / "bundle", "IMAGE")


@app.command(
    help="Measure accuracy and latency of a run, or of a bundle on this host, and decide the gate. Exit code 3: the "
    "gate of the run did not pass; of a bundle: it failed on the test data of the bundle.",
    short_help="Measure accuracy and latency of a run, or of a bundle on this host.",
    rich_help_panel=_STAGES,
)
@configured(
    ("data", "benchmark", "bundle"),
    _BUNDLE | STAGE | _OUT_OF_BUNDLE,
    short=_BENCHMARK_SHORT,
    first=(*_BUNDLE, "out", "data__source", "benchmark__limit_pp", "benchmark__emulate", *_BENCHMARK_SHORT),
    prepare=_of_bundle,
)
def benchmark(config: Config, out: Path, bundle: Path | None, as_json: bool, **again: bool) -> None:
    """Measure and print the summary, which one JSON line follows without a terminal; ``--json`` prints only this."""
    from kdedge.benchmarks.report.file import load_report
    from kdedge.pipeline.run_dir import lock_run

    report_dir = out
    if bundle is None:
        _run(("benchmark",), config, out, again)
        report_dir = out / "benchmark"
    else:
        from kdedge.pipeline.measure_bundle import benchmark_bundle, check_benchmark

        with lock_run(out, lambda: check_benchmark(config, bundle, out)):
            benchmark_bundle(config, bundle, out)
    report = load_report(report_dir / "report.json") if as_json else _print_report(report_dir)
    keys = ("accuracy", "gate", "size", "latency", "runtimes", "memory", "portability")
    if as_json or not sys.stdout.isatty():
        print(json.dumps({"report": str(report_dir / "report.json"), **{key: report.get(key) for key in keys}}))

    from kdedge.export.bundle.build import check_gate

    if bundle is not None and not (report["run"].get("same_test_images") and report["gate"]["verdict"] == "failed"):
        return  # the gate was decided on the host that built the bundle
    try:
        check_gate(report, allow_undecided=config.bundle.allow_undecided)
    except GateError as error:
        raise _without_reason(report, error) from None


@app.command(help="Write the bundle, if the gate passed.", rich_help_panel=_STAGES)
@configured(("data", "bundle"), STAGE | _SIGN)
def bundle(config: Config, out: Path, sign: Path | None, **again: bool) -> None:
    """Run the bundle stage."""
    signer = _signer(sign)
    _run(("bundle",), config, out, again)
    signer(out / "bundle")
    print(out / "bundle")
    log(f"manifest.json has SHA-256 {_manifest_sha256(out / 'bundle')}: keep it for `kdedge verify --sha256`")


def _signer(path: Path | None) -> Callable[[Path], None]:
    """Read the key now, before any work; return a function that signs a bundle with it."""
    if path is None:
        return lambda bundle: None
    from kdedge.export.bundle.signing import load_private_key, sign_bundle

    key = load_private_key(path)
    return lambda bundle: log(f"{bundle}: signed by {sign_bundle(bundle, key)}")


def _print_bundle(bundle: Path, example: str) -> None:
    """Print the path of a bundle and the next commands."""
    print(f"bundle: {bundle}\n  {command('verify', '--sha256', _manifest_sha256(bundle), bundle)}")
    print(f"  {command('predict', bundle, example)}")


def _manifest_sha256(stage_dir: Path) -> str:
    from kdedge.files import file_sha256
    from kdedge.ownership import MANIFEST

    return file_sha256(stage_dir / MANIFEST)


def _run(names: tuple[str, ...], config: Config, out: Path, again: Mapping[str, bool]) -> bool:
    """Run stages; return whether any of them ran."""
    from kdedge.pipeline.run import check_stages, run_stages

    with _locked(out, lambda: check_stages(names, config, out), again):
        return run_stages(names, config, out, **again, checked=True)


def _run_several(names: list[str], config: Config, out: Path, tolerance: float, again: Mapping[str, bool]) -> bool:
    """Run all stages for several students and print their comparison; return whether any stage ran.

    Raises:
        GateError: The gate of the chosen student did not pass.
        InputError: The tolerance is not a percentage.
    """
    from kdedge.benchmarks.report.file import load_report
    from kdedge.export.bundle.build import check_gate
    from kdedge.pipeline.students import check_students, run_students
    from kdedge.pipeline.students_page import HTML, print_students

    refuse("a run of several students")
    if not 0 <= tolerance <= 100:
        raise InputError(f"--tolerance {tolerance:g} is not from 0 to 100", "for example --tolerance 0.5")
    with _locked(out, lambda: check_students(names, config, out), again):
        any_ran, result = run_students(names, config, out, tolerance, **again)
    print_students(result)
    print(f"students: {out / HTML}\n")
    check_gate(load_report(out), allow_undecided=config.bundle.allow_undecided)
    return any_ran


@contextmanager
def _locked(out: Path, check: Callable[[], None], again: Mapping[str, bool]) -> Iterator[None]:
    """Lock a run directory; after an interruption the message states how to resume."""
    from kdedge.pipeline.run_dir import lock_run

    with lock_run(out, check):
        try:
            yield
        except KeyboardInterrupt:
            without = " without --force" if again["force"] else ""
            raise KeyboardInterrupt(f"run the same command{without} again to resume") from None


def _without_reason(report: Mapping[str, Any], error: GateError) -> GateError:
    """Return the error of a gate without its reason, which is in the summary."""
    verdict = "failed" if report["gate"]["verdict"] == "failed" else "is undecided"
    return GateError(f"the gate {verdict}", error.hint)


def _print_report(report_dir: Path) -> dict[str, Any]:
    """Print the summary of the report in a directory and return the report."""
    from kdedge.benchmarks.report.file import load_report
    from kdedge.benchmarks.report.pages import print_summary

    report = load_report(report_dir / "report.json")
    print_summary(report)
    print(f"report: {report_dir / 'report.html'}")
    return report

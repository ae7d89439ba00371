"""Commands on bundles, reports and the host: verify, predict, report, doctor, export-c."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kdedge.benchmarks.emulate.cpus import parse_emulated
from kdedge.errors import InputError, StageError
from kdedge.pipeline.commands.failures import reported, show_error
from kdedge.pipeline.commands.flags import AsJson, resolve
from kdedge.progress import log, printable

__all__ = ["app"]

app = typer.Typer()


@app.command(help="Check the files and the golden outputs of a bundle, on this host and on emulated CPUs.")
@reported
def verify(
    *,
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    emulate: Annotated[
        list[str] | None,
        typer.Option(
            "--emulate",
            metavar="CPU",
            help="Also run the INT8 model under qemu: haswell, cortex-a76, cortex-a72. Repeatable or comma-separated.",
        ),
    ] = None,
    emulate_images: Annotated[
        int,
        typer.Option(
            "--emulate-images", min=0, help="Number of test inputs to emulate in addition to the golden inputs."
        ),
    ] = 0,
    data: Annotated[
        str, typer.Option("--data", help="Data set of these inputs. Default: the data set of the bundle.")
    ] = "",
    data_dir: Annotated[
        str, typer.Option("--data-dir", help="Folder with the files of CIFAR-10, as for `kdedge data`.")
    ] = "",
    sha256: Annotated[
        str,
        typer.Option(
            "--sha256", metavar="HEX", help="Expected SHA-256 of manifest.json, as printed when the bundle was built."
        ),
    ] = "",
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="PUB", help="Public Ed25519 key (PEM) that must have signed manifest.json."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a bundle; a mismatch, here or on an emulated CPU, ends with exit code 1."""
    from kdedge.export.bundle.verify import check_flips, emulate_bundle, verify_bundle

    cpus = parse_emulated(",".join(emulate or ()), "--emulate")
    if not cpus and (emulate_images or data or data_dir):
        raise InputError("--emulate-images, --data and --data-dir are for --emulate", "name a CPU: --emulate haswell")
    if (data or data_dir) and not emulate_images:
        raise InputError("--data and --data-dir are for --emulate-images", "set the number: --emulate-images 1000")
    result = verify_bundle(bundle, sha256=sha256, key=key)
    if cpus:
        tests = None
        if emulate_images:
            from kdedge.benchmarks.emulate.emulator import check_emulators
            from kdedge.pipeline.measure_bundle import sample_test_images

            check_emulators(cpus)  # before a data set is fetched
            given = {key: value for key, value in (("source", data), ("dir", data_dir)) if value}
            config = resolve({"bundle": bundle, "config": None}, {"data": given})
            tests = sample_test_images(config, bundle, emulate_images)
        result["emulated"] = emulate_bundle(bundle, cpus, tests)
    if as_json:
        print(json.dumps(result))
    for row in result.get("emulated", ()):
        if not as_json:
            largest = f"largest logit difference {row['max_abs_diff']:.3g} ({100 * row['max_rel_diff']:.2g} %)"
            seen = largest if row["max_abs_diff"] else "logits identical"
            print(f"{row['cpu']}: {row['images']} inputs, {row['flips']} flips, {seen}, {row['seconds']:.0f} s")
    check_flips(result.get("emulated", ()), (bundle / "labels.txt").read_text(encoding="utf-8").splitlines())
    if not as_json:
        print(f"verified: {printable(str(bundle))}")
        print(f"  {result['files']} files unchanged since manifest.json was written; its SHA-256 is")
        print(f"  {result['manifest_sha256']}")
        print(f"  {_origin(result, expected=bool(sha256))}")


def _origin(result: Mapping[str, Any], *, expected: bool) -> str:
    """Return what is known about the origin of a verified bundle, and no more."""
    if result["signed_by"]:
        return f"signed by {result['signed_by']}"
    if expected:
        return "as expected with --sha256"
    known = "it has a signature, which was not checked (--key)" if result["signed"] else "not signed"
    return f"{known}; a change of files and manifest together would not be found"


@app.command(help="Classify images or recordings with a bundle.")
@reported
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Images, folders, .npy files, or - for paths on standard input; recordings (.csv) for signals."
        ),
    ],
    top: Annotated[int, typer.Option("--top", help="Number of classes per image or window, best first.")] = 1,
    fp32: Annotated[bool, typer.Option("--fp32", help="Use the FP32 model instead of INT8.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one line per image or window.", metavar="")
    ] = False,
) -> None:
    """Print the label and its probability for each image."""
    from kdedge.export.bundle.predict import predict as predict_images

    bad: list[InputError] = []

    def failed(error: InputError) -> None:
        bad.append(error)
        show_error(str(error))

    for row in predict_images(bundle, images, top_k=top, fp32=fp32, failed=failed):
        # Flushed, so that a caller who pipes paths one by one gets the answers one by one.
        if as_json:
            print(json.dumps(row), flush=True)
            continue
        for answer in row.get("top", [row]):
            label, source = printable(answer["label"]), printable(row["file"])
            print(f"{label:<16} {100 * answer['probability']:6.2f} %  {_place(row)}{source}", flush=True)
    if bad:
        raise typer.Exit(StageError.exit_code)


def _place(row: dict[str, Any]) -> str:
    """Return the start of a window in its recording; empty for an image."""
    if "row" not in row:
        return ""
    return f"row {row['row']:<6} " if row["start_s"] is None else f"{row['start_s']:>10.3f} s  "


@app.command(help="Print one report, compare two, or show several in a table.")
@reported
def report(
    reports: Annotated[list[Path], typer.Argument(help="Run or benchmark directories, bundles, or report.json files.")],
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Also draw accuracy against latency, as .png or .svg.", metavar="path"),
    ] = None,
) -> None:
    """Print one report, the differences of two, or a table of several."""
    from kdedge.benchmarks.report.compare import check_same_host, compare_reports, tabulate
    from kdedge.benchmarks.report.compare_text import comparison_markdown, print_comparison
    from kdedge.benchmarks.report.file import load_report

    if as_json and markdown:
        raise InputError("--json and --markdown exclude each other", "use one of them")
    if figure and len(reports) == 1:
        raise InputError("--figure needs two reports or more", "name another: kdedge report A B --figure FILE.png")
    loaded, names = [load_report(path) for path in reports], [str(path) for path in reports]
    if len(loaded) == 1:
        from kdedge.benchmarks.report.pages import render_markdown

        print(json.dumps(loaded[0]) if as_json else render_markdown(loaded[0], []))
        return
    result = compare_reports(loaded[0], loaded[1], names) if len(loaded) == 2 else tabulate(loaded, names)
    if figure:
        from kdedge.benchmarks.report.figures import draw_comparison

        check_same_host(loaded, names)
        draw_comparison(tabulate(loaded, names), figure)
        log(f"figure: {figure}")
    if as_json:
        print(json.dumps(result))
    elif markdown:
        print(comparison_markdown(result), end="")
    else:
        print_comparison(result)


@app.command(help="Show the capabilities of this host and whether a bundle fits it.")
@reported
def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle directory or model file to compare with this host.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the host's capabilities: devices, instruction sets, execution providers, emulators."""
    from kdedge.benchmarks.emulate.emulator import emulation_checks
    from kdedge.benchmarks.host import artifact_check, format_doctor
    from kdedge.benchmarks.host import doctor as examine

    facts = examine()
    facts["checks"] += emulation_checks()
    # Without onnxruntime, which is the first check, no model can be opened.
    if bundle is not None and facts["host"] is not None:
        facts["checks"].insert(0, artifact_check(_model_of(bundle)))
    print(json.dumps(facts) if as_json else format_doctor(facts))


@app.command(
    "export-c",
    help="Write the INT8 model of a bundle as C99 for microcontrollers: integer arithmetic, static buffers.",
    short_help="Write the INT8 model of a bundle as C for microcontrollers.",
    rich_help_panel="More commands: other devices",
)
@reported
def export_c(
    *,
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for student.c, student.h, main.c and student.json.")],
    as_json: AsJson = False,
) -> None:
    """Write the C files and compare them with the golden logits."""
    import numpy as np

    from kdedge.export.bundle.contents import GOLDEN_INPUTS, GOLDEN_LOGITS, MODELS
    from kdedge.export.bundle.verify import verify_bundle
    from kdedge.export.c99.check import check_c, code_size
    from kdedge.export.c99.network import read_network
    from kdedge.export.c99.source import write_c

    if out.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"--out {out} is in the bundle, which takes no other files", "give another --out")
    verify_bundle(bundle)
    result: dict[str, Any] = {**write_c(read_network(bundle / MODELS["int8"]), out), **code_size(out)}
    pixels, logits = (np.load(bundle / name) for name in (GOLDEN_INPUTS, GOLDEN_LOGITS["int8"]))
    result["golden_images"] = len(pixels) if check_c(out, pixels, logits) else 0
    if as_json:
        print(json.dumps(result))
        return
    print(f"written: {printable(str(out))}")
    code = f", {result['code_bytes']:,} of code for {result['code_for']}" if "code_bytes" in result else ""
    print(f"  flash: {result['constant_bytes']:,} bytes of weights, {result['table_bytes']:,} of tables{code}")
    print(f"  RAM: {result['buffer_bytes']:,} bytes of buffers, {result['input_bytes']:,} for an image, and the stack")
    print(f"  {result['macs'] / 1e6:.1f} million multiply-accumulates per image")
    if result["golden_images"]:
        print(f"  compiled here: the logits of {result['golden_images']} golden images are identical")
    else:
        print("  not compiled: this machine has no C compiler (cc)")


def _model_of(artifact: Path) -> Path:
    """Return the INT8 model of a bundle, or the given model file.

    Raises:
        InputError: There is no such file, or the folder is not a bundle.
        StageError: A bundle with a damaged manifest.
    """
    from kdedge.export.bundle.verify import read_manifest

    if not artifact.exists():
        raise InputError(f"no model at {artifact}", "check the path")
    if not artifact.is_dir():
        return artifact
    read_manifest(artifact)
    return artifact / "student.int8.onnx"

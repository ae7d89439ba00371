"""Commands on what runs leave and on the host: verify, predict, report, doctor."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.failures import reported
from pipeline.commands.flags import resolve
from pipeline.errors import InputError
from pipeline.parsing import parse_emulated

__all__ = ["app"]

app = typer.Typer()


@app.command(help="Check a bundle: every file's SHA-256 and the golden outputs, here and on emulated CPUs.")
@reported
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
            config = resolve({"bundle": bundle, "config": None}, {"data": given})
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
@reported
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


@app.command(help="Compare two reports, or print one as Markdown for a pull request.")
@reported
def report(
    a: Annotated[Path, typer.Argument(help="A run or benchmark directory, a bundle, or a report.json.")],
    b: Annotated[Path | None, typer.Argument(help="Another, to compare with A.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a comparison as Markdown.")] = False,
) -> None:
    """Print one report, or what is different in another."""
    from benchmarks.compare_reports import compare_reports, comparison_markdown, load_report, print_comparison

    if as_json and markdown:
        raise InputError("--json and --markdown exclude each other", "give one of them")
    first = load_report(a)
    if b is None:
        from benchmarks.report import render_markdown

        print(json.dumps(first) if as_json else render_markdown(first, []))
        return
    comparison = compare_reports(first, load_report(b), (str(a), str(b)))
    if as_json:
        print(json.dumps(comparison))
    elif markdown:
        print(comparison_markdown(comparison), end="")
    else:
        print_comparison(comparison)


@app.command(help="Show what this host can do, and whether a bundle was made for it.")
@reported
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

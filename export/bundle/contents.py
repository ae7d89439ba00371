"""The files of a bundle."""

from pathlib import Path

from kdedge.ownership import MANIFEST

__all__ = [
    "BUNDLE_FILES",
    "COPIED",
    "GOLDEN_INPUTS",
    "GOLDEN_LOGITS",
    "MODELS",
    "RUNTIMES_FOLDER",
    "SBOM",
    "bundle_hint",
]

MODELS = {"fp32": "student.onnx", "int8": "student.int8.onnx"}
# The stage that each copied file comes from.
COPIED = {MODELS["fp32"]: "export", MODELS["int8"]: "quantize", "report.json": "benchmark"}
GOLDEN_INPUTS = "golden_inputs.npy"
GOLDEN_LOGITS = {kind: f"golden_{kind}_logits.npy" for kind in MODELS}
RUNTIMES_FOLDER = "runtimes"  # of the benchmark: the student for other runtimes, which the bundle carries
SBOM = "sbom.cdx.json"

# Without the manifest, and without SBOM, which earlier versions did not write.
BUNDLE_FILES = frozenset(
    {
        *COPIED,
        GOLDEN_INPUTS,
        *GOLDEN_LOGITS.values(),
        "labels.txt",
        "preprocessing.json",
        "MODEL_CARD.md",
        "predict.py",
    }
)


def bundle_hint(path: Path) -> str:
    """Return the next step if ``path`` is not a bundle: of a run directory, the bundle in it."""
    bundle = path / "bundle"
    if (bundle / MANIFEST).is_file():
        return f"give its bundle: {bundle}"
    return "give the folder that `kdedge bundle` wrote"

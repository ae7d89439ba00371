"""The bill of materials of a bundle: its models, what runs them, which data and weights they come from, what made them.

CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/. The document has no time and no random number, so that the same
inputs result in the same file.
"""

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from kdedge import __version__
from kdedge.export.bundle.contents import MODELS
from kdedge.files import file_sha256
from kdedge.install import DISTRIBUTION
from kdedge.manifest import versions

__all__ = ["bill_of_materials"]


def bill_of_materials(
    bundle: Path,
    others: Iterable[Path],
    history: Mapping[str, Any],
    needs: Mapping[str, Any],
    made_with: Iterable[Mapping[str, str | None]],
) -> dict[str, Any]:
    """Return the document.

    Args:
        bundle: The folder with both models.
        others: The files of the student for other runtimes.
        history: Of the bundle's manifest, see `kdedge.export.bundle.build.build_bundle`.
        needs: Likewise.
        made_with: Versions of the packages that made the result of each stage, by name.
    """
    datasets = [
        {
            "type": "data",
            "bom-ref": part,
            "name": f"{history['run']['data']}, {part.removeprefix('data/')}",
            "data": [{"type": "dataset"}],
            "properties": [_property("data_sha256", digest)],  # of names and bytes, so it is not a hash of a file
        }
        for part, digest in sorted(history["data"].items())
    ]
    fp32, int8 = (_model(name, file_sha256(bundle / name)) for name in (MODELS["fp32"], MODELS["int8"]))
    weights = [_model(name, digest) for name, digest in sorted(history["weights"].items())]
    elsewhere = [_model(path.name, file_sha256(path)) for path in others]
    runtime = [
        _package("numpy", metadata.version("numpy"), scope="required"),
        _package("onnxruntime", versions()["onnxruntime"], scope="required"),
        _package("Pillow", metadata.version("Pillow"), scope="optional"),  # predict.py needs it for image files only
    ]
    refs = [item["bom-ref"] for item in runtime if item["scope"] == "required"]
    int8["modelCard"] = {"modelParameters": {"datasets": [{"ref": item["bom-ref"]} for item in datasets]}}
    int8["properties"] = [_property(f"needs_{name}", str(version)) for name, version in needs.items()]
    tools = {(name, version) for used in made_with for name, version in used.items() if version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": int8,
            "tools": {
                "components": [
                    {"type": "application", "name": DISTRIBUTION, "version": __version__},
                    *(
                        {"type": "library", "name": name, "version": version}
                        for name, version in sorted(tools)
                        if name != "kdedge"
                    ),
                ]
            },
        },
        "components": [fp32, *elsewhere, *weights, *datasets, *runtime],
        "dependencies": [{"ref": item["bom-ref"], "dependsOn": refs} for item in (int8, fp32)],
    }


def _model(name: str, sha256: str) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": name,
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }


def _package(name: str, version: str | None, scope: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name.lower()}@{version}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "scope": scope, "purl": purl}


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"kdedge:{name}", "value": value}

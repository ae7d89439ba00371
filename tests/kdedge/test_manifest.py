"""The versions in manifests."""

from importlib import metadata

import pytest

from kdedge.manifest import ONNXRUNTIMES, versions


@pytest.mark.parametrize("build", ONNXRUNTIMES)
def test_every_build_of_onnxruntime_has_a_version(build, monkeypatch):
    installed = {build: "1.24.1"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    found = versions()
    assert (found["onnxruntime"], found["torch"]) == ("1.24.1", None)

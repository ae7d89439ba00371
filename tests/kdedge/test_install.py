"""The command that adds an extra to the copy of kdedge that runs."""

import json
import shlex
from importlib import metadata

import pytest

from kdedge import install


class Installed:
    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


def test_a_checkout_is_installed_from_its_folder(tmp_path, monkeypatch):
    root = tmp_path / "my checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text("")
    monkeypatch.setattr(install, "_ROOT", root)
    assert shlex.split(install.install_command("train")) == ["pip", "install", "-e", f"{root}[train]"]


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (None, "kdedge-int8[cpu]"),
        (
            {"url": "file:///a%20b/kdedge_int8-1-py3-none-any.whl", "archive_info": {}},
            "/a b/kdedge_int8-1-py3-none-any.whl[cpu]",
        ),
        ({"url": "https://example.org/k.whl", "archive_info": {}}, "kdedge-int8[cpu] @ https://example.org/k.whl"),
        (
            {"url": "https://example.org/k", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "kdedge-int8[cpu] @ git+https://example.org/k@abc",
        ),
    ],
)
def test_what_was_installed_comes_from_where_it_came_from(origin, source, tmp_path, monkeypatch):
    monkeypatch.setattr(install, "_ROOT", tmp_path)
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    assert shlex.split(install.install_command("cpu")) == ["pip", "install", source]


def test_files_that_nobody_installed_name_the_distribution(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(install, "_ROOT", tmp_path)
    monkeypatch.setattr(metadata, "distribution", missing)
    assert install.install_command("train") == "pip install 'kdedge-int8[train]'"

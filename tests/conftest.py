"""Fixtures that tests of several packages share."""

from pathlib import Path

import pytest
from tiny import TINY, make_folder


@pytest.fixture(scope="session")
def folder_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tiny_options(folder_data: Path) -> list[str]:
    return ["--data", f"folder:{folder_data}", *TINY]

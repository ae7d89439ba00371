"""The caches of the tests of training, a run of all stages, and a process with the tiny teacher."""

import pytest
from shared import made_once
from tiny import TINY
from typer.testing import CliRunner


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what training caches out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDEDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory, folder_data, own_cache):
    """A run of all stages, to be read only; what the command printed is in stdout.txt next to it."""
    from kdedge.pipeline.cli import app

    def make(folder):
        command = ["run-all", "--data", f"folder:{folder_data}", *TINY, "--out", str(folder / "run")]
        result = CliRunner().invoke(app, [*command, "--allow-undecided"])
        assert result.exit_code == 0, result.output
        (folder / "stdout.txt").write_text(result.stdout)

    return made_once(tmp_path_factory, "finished", make) / "run"

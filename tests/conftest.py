"""What tests of several packages share: one thread per process, the tiny teacher, a data set and a finished run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_teacher
from shared import made_once
from tiny import TINY, make_folder

# Before numpy and PyTorch are imported, and for the processes that tests start: threads only contend on few cores.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(tiny_teacher.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
tiny_teacher.install()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Take back the threads that a test set in PyTorch."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "images", make_folder)


@pytest.fixture(scope="session")
def tiny_options(folder_data: Path) -> list[str]:
    return ["--data", f"folder:{folder_data}", *TINY]


@pytest.fixture
def no_report_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the figures of reports, which other tests look at."""
    monkeypatch.setattr("kdedge.benchmarks.report.pages.draw_figures", lambda *_: [])


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the drawing of all figures, which other tests look at."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"a figure"))


@pytest.fixture
def brief_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time candidates of the quantization for a moment only."""
    monkeypatch.setattr("kdedge.export.quantize.search._LATENCY_SECONDS", 0.01)

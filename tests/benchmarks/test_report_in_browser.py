"""The HTML report in a real headless browser, at desktop and phone width, light and dark, and as a print."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, DESKTOP, PHONE, command, framed

from kdedge.benchmarks.report.figures import draw_figures
from kdedge.benchmarks.report.pages import render_html

REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs headless Chromium"),
]

# Hands the measurements to the page around the frame, which puts them into its title, where --dump-dom shows them.
PROBE = """<script>onload = () => {
  const images = [...document.images], style = getComputedStyle(document.body);
  const blocks = [...document.querySelectorAll("section, header, p, dl, .facts")];
  const widest = Math.max(...blocks.map((block) => block.scrollWidth));
  parent.postMessage({
    widths: [document.documentElement.scrollWidth, innerWidth], widest,
    loaded: images.map((image) => image.naturalWidth > 0), drawn: images.map((image) => image.currentSrc.length),
    colors: [style.backgroundColor, style.color],
    headline: document.querySelector("h1").getBoundingClientRect().top,
    trust: document.querySelector("td.noisy").getBoundingClientRect().right,
  }, "*");
}</script></body>"""
LISTEN = "<script>onmessage = ({ data }) => { document.title = JSON.stringify(data); }</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the reference run with every section that a report can have."""
    folder = tmp_path_factory.mktemp("report")
    report: dict[str, Any] = copy.deepcopy(json.loads((REFERENCE / "benchmark-vnni" / "report.json").read_text()))
    searched = {
        name: json.loads((REFERENCE / "quantize" / f"{name}.json").read_text())
        for name in ("candidates", "sensitivity")
    }
    report["quantization"] = {**searched["candidates"], "sensitivity": searched["sensitivity"]}
    report["portability"] = json.loads((REFERENCE / "portability" / "verify.json").read_text())
    report["answer_changes"] = [{"label": "cat", "fp32": "cat", "int8": "dog", "count": 3}]
    report["run"]["commands"] = ["kdedge run-all --out artifacts/run --data-dir " + "/quite/a/long/path" * 8]
    report["confusions"] = [{"label": "cat", "predicted": "dog", "count": 60}]
    report["mistakes"] = [{"image": 7, "label": "cat", "predicted": "dog", "probability": 0.98}]
    figures = draw_figures(report, folder, np.zeros((1, 32, 32, 3), np.uint8))
    (folder / "plain.html").write_text(render_html(report, figures))
    (folder / "report.html").write_text((folder / "plain.html").read_text().replace("</body>", PROBE))
    return folder


def look(folder: Path, profile: Path, width: int, *, dark: bool) -> dict[str, Any]:
    outer = folder / f"{width}.html"
    outer.write_text(LISTEN + framed("report.html", width))
    flags = ["--virtual-time-budget=3000", "--dump-dom", outer.as_uri()]
    done = subprocess.run(
        [*command(profile, dark=dark), *flags], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout.partition("<title>")[2].partition("</title>")[0])
    return found


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_report_fits_its_window_and_shows_its_figures(page: Path, tmp_path: Path, width: int) -> None:
    found = {dark: look(page, tmp_path / f"profile-{dark}", width, dark=dark) for dark in (False, True)}
    for seen in found.values():
        assert seen["widths"] == [width, width]
        assert seen["widest"] <= width
        assert len(seen["loaded"]) == 8
        assert all(seen["loaded"])
        assert 0 < seen["headline"] < 100
        assert seen["trust"] <= width  # what makes a number doubtful is seen without scrolling
    assert found[False]["colors"] == ["rgb(245, 246, 248)", "rgb(28, 37, 48)"]
    assert found[True]["colors"] == ["rgb(13, 17, 23)", "rgb(216, 222, 230)"]
    assert found[False]["drawn"] != found[True]["drawn"]


def test_the_report_prints(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    flags = [f"--print-to-pdf={target}", "--no-pdf-header-footer", (page / "plain.html").as_uri()]
    subprocess.run([*command(tmp_path / "profile", dark=True), *flags], capture_output=True, check=True, timeout=60)
    pages = target.read_bytes().count(b"/Type /Page\n")
    assert 3 <= pages <= 8

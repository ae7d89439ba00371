"""The HTML report in a real headless browser, at desktop and phone width."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPORT = Path(__file__).resolve().parents[2] / "artifacts" / "reference" / "benchmark" / "report.html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
]
# Puts the measurements into the title, where --dump-dom shows them.
PROBE = """<script>document.title = [document.documentElement.scrollWidth, innerWidth, document.images.length,
[...document.images].every(i => i.complete && i.naturalWidth > 0)].join(' ');</script></body>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs headless Chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_the_report_fits_its_window_and_shows_its_figures(tmp_path, width):
    page = tmp_path / "report.html"
    page.write_text(REPORT.read_text().replace("</body>", PROBE))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    dom = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=60).stdout
    title = dom.partition("<title>")[2].partition("</title>")[0]
    scroll_width, inner_width, images, loaded = title.split()
    assert int(scroll_width) <= int(inner_width) + 1
    assert int(images) >= 3
    assert loaded == "true"

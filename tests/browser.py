"""Headless Chromium for the tests that look at pages."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESKTOP = 390, 1200
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",  # a phone has none that take space
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def command(profile: Path, *, dark: bool = False) -> list[str]:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    return [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", f"--window-size={DESKTOP},900", scheme]


def framed(url: str, width: int) -> str:
    """Return a page that shows another in a frame, because a window is at least 500 pixels wide."""
    return f'<!doctype html><body style="margin:0"><iframe src="{url}" width="{width}" height="900" style="border:0">'


@contextmanager
def browsing(url: str, profile: Path, *, dark: bool = False) -> Iterator[None]:
    """Show a page until the block ends."""
    shown = [*command(profile, dark=dark), "--remote-debugging-port=0", url]
    with subprocess.Popen(shown, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()

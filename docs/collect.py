"""Collect the pages of the site in ``build/docs``, with the files of the repository that they link to.

A link such as ``../CHANGELOG.md`` works on a code host. In the site it becomes ``repository/CHANGELOG.md``, whose links
to ``docs/`` lead back to the pages.

    python docs/collect.py && zensical build        # or: make docs
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "docs"


def main() -> None:
    """Write the pages, and copy what they link to."""
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SITE, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.txt"))
    for page in SITE.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\]\(\.\./([^)#]+)", text):
            (SITE / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
            copied = Path(shutil.copy(ROOT / name, SITE / "repository" / name))
            if copied.suffix == ".md":
                copied.write_text(copied.read_text(encoding="utf-8").replace("](docs/", "](../"), encoding="utf-8")
        page.write_text(text.replace("](../", "](repository/"), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Write the generated parts of the README and of the pages in ``docs/``, and the pages of the reference report.

A part begins with ``<!-- generated: NAME -->`` and ends with ``<!-- end -->``. NAME is a table of `docs/results.py` or
``cli``, the reference of every command. A test compares the files with what this script writes.

    python docs/generate.py        # or: make docs-generate
"""

import re
from pathlib import Path

from cli_reference import cli_reference
from results import REFERENCE, TABLES

from kdedge.benchmarks.report.file import load_report
from kdedge.benchmarks.report.pages import write_report

__all__ = ["PAGES", "fill"]

ROOT = Path(__file__).resolve().parents[1]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS = {**TABLES, "cli": cli_reference}
_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """Return a page with its generated parts replaced by what they are today."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", text)


def main() -> None:
    """Write the pages whose generated parts changed, and the reference report as this version renders it."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            page.write_text(filled, encoding="utf-8")
            print(f"updated {page.relative_to(ROOT)}")
    write_report(load_report(REFERENCE / "benchmark" / "report.json"), REFERENCE / "benchmark")


if __name__ == "__main__":
    main()

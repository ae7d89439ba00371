"""Write what is generated: parts of README and ``docs/``, the reference report, the scripts of published bundles.

A part begins with ``<!-- generated: NAME -->`` and ends with ``<!-- end -->``. NAME is a table of `docs/results.py` or
``cli``, the reference of every command. A test compares the files with what this script writes.

    python docs/generate.py        # or: make docs-generate
"""

import re
from pathlib import Path
from shutil import copyfile

from cli_reference import cli_reference
from results import REFERENCE, TABLES

from kdedge.benchmarks.report.file import load_report
from kdedge.benchmarks.report.pages import write_report
from kdedge.files import file_sha256, load_json, write_json
from kdedge.manifest import sealed

__all__ = ["BUNDLES", "PAGES", "fill"]

ROOT = Path(__file__).resolve().parents[1]

BUNDLES = [REFERENCE / "bundle", *(file.parent for file in sorted((REFERENCE / "front").glob("*/manifest.json")))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS = {**TABLES, "cli": cli_reference}
_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """Return a page with its generated parts replaced by what they are today."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", text)


def main() -> None:
    """Write what changed, and the reference report as this version renders it."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            page.write_text(filled, encoding="utf-8")
            print(f"updated {page.relative_to(ROOT)}")
    write_report(load_report(REFERENCE / "benchmark" / "report.json"), REFERENCE / "benchmark")
    for bundle in BUNDLES:
        _renew_script(bundle)


def _renew_script(bundle: Path) -> None:
    """Give a bundle the ``predict.py`` of this version, and its manifest the hash of it."""
    script, source = bundle / "predict.py", ROOT / "export" / "bundle" / "standalone.py"
    if script.read_bytes() != source.read_bytes():
        copyfile(source, script)
        manifest = load_json(bundle / "manifest.json", ("outputs",))
        manifest["outputs"]["predict.py"] = file_sha256(script)
        del manifest["content_sha256"]
        write_json(bundle / "manifest.json", sealed(manifest))
        print(f"updated {script.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

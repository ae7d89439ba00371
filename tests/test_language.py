"""The language of what a person reads: plain technical English.

BANNED maps a pattern to what to write instead. To check more files, add them to CHECKED.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BANNED = {
    r"can(not)? be had": "available, unavailable",
    r"\banew\b": "again",
    r"if need be": "if necessary",
    r"\blikewise\b": "also, in the same way",
    r"\bso (many|much) [a-z]+s\b": "N",
    r"\bgo(es)? on\b": "continues, resumes",
    r"(?<![-`])\bbesides?\b": "next to, compared with",
    r"\balone\b": "only",
    r"\b(lies|lie|stands|stand) (in|on|under)\b": "is in",
    r"(?<![Tt]here )\bis no (?!(longer|better|worse|slower|faster|larger|smaller|less|more)\b)": "is not a",
    r"\bat once\b": "in parallel, immediately",
    r"\bhitherto\b|\bthereof\b|\bthereby\b|\bwhereof\b": "(leave out)",
    r"\b(proven|proved) before it ships": "verified before it ships",
    r"\bdrown(s|ed)?\b": "dominate",
    r"\b(report|model|manifest|log|table|figure|code|file|command|kdedge) (says|tells|knows)\b": "has, reports, shows",
    r"answers? (more )?[a-z ]*right\b": "predicts correctly",
    r"\(empty: ": "Default: none",
    r"\bfor (it|they|the) [a-z]+ (is|are|was|were|has|have)\b": "because",
    r"\bwhat is (there|written|kept|shipped)\b": "(name the thing)",
    r"\bno (one|body) (knows|chose)\b": "unexpected",
}


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_document_is_plain_english(path):
    found = [
        f"line {number}: {match[0]!r}: write {instead}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, instead in BANNED.items()
        for match in re.finditer(pattern, line)
    ]
    assert not found, "\n".join(found)

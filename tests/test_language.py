"""The language of documents, comments, docstrings, messages and reports: plain technical English.

BANNED maps a pattern to the better wording. To check more files, add them to CHECKED.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROSE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "benchmarks/report/templates/*.j2"]
CODE = ["kdedge/*.py", "benchmarks/**/*.py", "export/**/*.py", "pipeline/**/*.py", "experiments/*.py"]
SEALED = ROOT / "export" / "bundle" / "standalone.py"  # byte-equal to predict.py of the reference bundle
CHECKED = [path for pattern in (*PROSE, *CODE) for path in sorted(ROOT.glob(pattern)) if path != SEALED]
BANNED = {
    r"can(not)? be had": "available, unavailable",
    r"\banew\b": "again",
    r"if need be": "if necessary",
    r"\blikewise\b": "also, in the same way",
    r"\bso (many|much) [a-z]+s\b": "N",
    r"\bgo(es)? on\b": "continues, resumes",
    r"(?<![-`\"'])\bbesides?\b": "next to, compared with",
    r"\balone\b": "only",
    r"\b(lies|lie|stands|stand) (in|on|under)\b": "is in",
    r"(?<![Tt]here )\bis no (?!(longer|better|worse|slower|faster|larger|smaller|less|more)\b)": "is not a",
    r"\bat once\b": "in parallel, immediately",
    r"\bhitherto\b|\bthereof\b|\bthereby\b|\bwhereof\b": "(leave out)",
    r"\b(proven|proved) before it ships": "verified before it ships",
    r"\bdrown(s|ed)?\b": "dominate",
    r"\b(report|model|manifest|log|table|figure|code|file|command|kdedge) (says|tells|knows)\b": "has, reports, shows",
    r"answers? (more )?[a-z ]*right\b": "predicts correctly",
    r"\b(changed|changes|other|many|of the|000|one) answers?\b": "prediction",
    r"\(empty: ": "Default: none",
    r"\bfor (it|they|the) [a-z]+ (is|are|was|were|has|have)\b": "because",
    r"\bwhat is (there|written|kept|shipped)\b": "(name the thing)",
    r"\bno (one|body) (knows|chose)\b": "unexpected",
}


IN_CODE = {
    r"`kdedge [^`{]*(--[a-z-]+|verify|predict) \{": "kdedge.errors.command, which quotes paths with blanks",
    r"\b(gives|gave)\b": "returns, produces",
    r"\b(says|said|say|tells|tell|told|knows)\b": "reports, has, states",
    r"(^|[.:;] )What [^?]*$": "(subject first)",
    r"\bnobody\b": "(name the subject)",
    r"\bso (many|much)\b": "N",
    r"\b(that|those) of (that|those|what)\b": "(name the thing)",
}


def lines(path):
    """Yield number and text of the lines that a person reads; of Python, comments and strings with blanks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line.strip().lstrip("#\"'rfb ")


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_plain_english(path):
    banned = BANNED if path.suffix == ".md" else BANNED | IN_CODE
    found = [
        f"line {number}: {match[0]!r}: write {instead}"
        for number, line in lines(path)
        for pattern, instead in banned.items()
        for match in re.finditer(pattern, line)
    ]
    assert not found, "\n".join(found)

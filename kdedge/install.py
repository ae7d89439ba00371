"""The command that adds an extra to this copy of kdedge.

The distribution is called `DISTRIBUTION`. The name ``kdedge`` belongs to another project on the package index, so no
hint may contain ``pip install kdedge``.
"""

import json
import shlex
from importlib import metadata
from pathlib import Path
from urllib.request import url2pathname

__all__ = ["DISTRIBUTION", "install_command"]

DISTRIBUTION = "kdedge-int8"
_ROOT = Path(__file__).resolve().parent.parent


def install_command(extra: str) -> str:
    """Return the command that installs an extra (``cpu``, ``gpu``, ``train``, …) from the source of this copy."""
    if (_ROOT / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{_ROOT}[{extra}]')}"
    url = _origin()
    if url.startswith("file:"):
        source = f"{url2pathname(url.removeprefix('file://'))}[{extra}]"
    else:
        source = f"{DISTRIBUTION}[{extra}]" + (f" @ {url}" if url else "")
    return f"pip install {shlex.quote(source)}"


def _origin() -> str:
    """Return the URL that pip recorded; empty after an installation from a package index."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return ""
    known = json.loads(text) if text else {}
    vcs = known.get("vcs_info")
    return f"{vcs['vcs']}+{known['url']}@{vcs['commit_id']}" if vcs else str(known.get("url", ""))

"""Jinja templates of the pages that kdedge writes, and pictures inside a page."""

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["load_template", "picture_url"]


@cache
def load_template(path: Path) -> "Template":
    """Return a template; a missing variable is an error, and HTML is escaped.

    The filter ``cell`` escapes a value for a cell of a Markdown table: class names are the user's and may have bars.

    Raises:
        jinja2.TemplateNotFound: There is no such file.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=".html" in path.name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|")
    return environment.get_template(path.name)


def picture_url(data: bytes, kind: str = "png") -> str:
    """Return the content of a picture file, ``png`` or ``webp``, as a URL for the source of an image element."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

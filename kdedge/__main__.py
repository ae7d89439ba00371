"""``python -m kdedge`` is the command ``kdedge``."""

import sys

from kdedge.pipeline.cli import app

sys.exit(app())

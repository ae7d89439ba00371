"""kdedge: from labelled images to a small INT8 image classifier, verified before it ships, with one command."""

__version__ = "0.1.0"

"""kdedge: from a data set to a small INT8 model that is proven before it ships, in one command."""

__version__ = "0.1.0"

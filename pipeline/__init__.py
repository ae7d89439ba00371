"""kdedge: from a data set to a small INT8 model that is proven on the edge, in one command."""

__version__ = "0.1.0"

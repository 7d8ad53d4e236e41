"""Vectordash: the software behind a GPU cloud that anyone can run."""

__version__ = "2.0.0"

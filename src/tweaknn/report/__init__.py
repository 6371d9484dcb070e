"""One self-contained page about a result, for people first."""

from tweaknn.report.page import render
from tweaknn.report.read import read_result

__all__ = ["read_result", "render"]

"""The page about a run, and its pictures."""

from sae.report.page import write_report
from sae.report.plots import curves_png

__all__ = ["curves_png", "write_report"]

"""The page about a run, and its pictures."""

from sae.browser.page import write_report
from sae.browser.plots import curves_png

__all__ = ["curves_png", "write_report"]

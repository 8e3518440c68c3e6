"""The page and the plots of a run, and of a sweep."""

from sae.browser.page import write_report
from sae.browser.plots import curves_png

__all__ = ["curves_png", "write_report"]

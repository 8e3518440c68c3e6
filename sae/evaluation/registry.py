"""Earlier home of the list of measurements, now in `sae.metrics.registry`."""

from sae.metrics.registry import MEASUREMENTS

__all__ = ["MEASUREMENTS"]

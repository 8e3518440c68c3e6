"""The Python API: train SAEs with one call, and use what a run left."""

from sae.api.run import Run, Runs
from sae.api.train import train

__all__ = ["Run", "Runs", "train"]

"""The training step, free of any framework: `Learner.step` and what it needs."""

from sae.training.config import OptimConfig
from sae.training.learner import Learner

__all__ = ["Learner", "OptimConfig"]

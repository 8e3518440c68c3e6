"""The training step, free of any framework: `Learner.step` and what it needs."""

from sae.training.learner import Learner, OptimConfig

__all__ = ["Learner", "OptimConfig"]

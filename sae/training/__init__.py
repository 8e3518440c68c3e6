"""The training step, free of any framework: `Learner.step` and what it needs."""

from sae.training.config import OptimConfig
from sae.training.dictionary import learn_dictionary
from sae.training.learner import Learner
from sae.training.sparse_coding import SparseCoding
from sae.training.sparse_coding_learner import SparseCodingLearner

__all__ = ["Learner", "OptimConfig", "SparseCoding", "SparseCodingLearner", "learn_dictionary"]

"""The training step, free of any framework: `Learner.step` and what it needs."""

from sae.training.dictionary_learning.config import SparseCoding
from sae.training.dictionary_learning.learn import learn_dictionary
from sae.training.dictionary_learning.two_stage import SparseCodingLearner
from sae.training.learner import Learner
from sae.training.optim_config import OptimConfig

__all__ = ["Learner", "OptimConfig", "SparseCoding", "SparseCodingLearner", "learn_dictionary"]

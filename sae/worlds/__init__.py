"""Worlds: synthetic sources of activations whose true features are known."""

from sae.worlds.compositional import Compositional
from sae.worlds.copula import DenseCopula, FirstCopula, LowRankCopula
from sae.worlds.directions import Coherent, Directions, Orthogonal, Random
from sae.worlds.hierarchy import Hierarchy
from sae.worlds.latents import Latents, PrototypeLatents, SparseLatents, SphereLatents
from sae.worlds.magnitudes import Constant, HalfNormal, Magnitudes, Uniform
from sae.worlds.nonlinear import NonlinearMixing
from sae.worlds.superposition import SparseSuperposition
from sae.worlds.support import Active, Bernoulli, Exact
from sae.worlds.toy_model import ToyModel
from sae.worlds.world import World

__all__ = [
    "Active",
    "Bernoulli",
    "Coherent",
    "Compositional",
    "Constant",
    "DenseCopula",
    "Directions",
    "Exact",
    "FirstCopula",
    "HalfNormal",
    "Hierarchy",
    "Latents",
    "LowRankCopula",
    "Magnitudes",
    "NonlinearMixing",
    "Orthogonal",
    "PrototypeLatents",
    "Random",
    "SparseLatents",
    "SparseSuperposition",
    "SphereLatents",
    "ToyModel",
    "Uniform",
    "World",
]

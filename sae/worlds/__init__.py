"""Sources of activations whose true features are known."""

from sae.worlds.superposition import SparseSuperposition

__all__ = ["SparseSuperposition"]

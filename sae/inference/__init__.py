"""Codes for a given dictionary, each method with a bound on how far it is from the optimum."""

from sae.inference.certificate import duality_gap
from sae.inference.fista import fista, ista, squared_spectral_norm
from sae.inference.result import InferenceResult

__all__ = ["InferenceResult", "duality_gap", "fista", "ista", "squared_spectral_norm"]

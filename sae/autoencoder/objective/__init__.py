"""What is minimised: a list of terms. Adding a term: one file here, its test, one line below."""

from sae.autoencoder.objective.auxk import AuxK
from sae.autoencoder.objective.base import Forward, Term, spread
from sae.autoencoder.objective.fvu import FVU

__all__ = ["FVU", "AuxK", "Forward", "Term", "spread"]

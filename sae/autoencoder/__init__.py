"""Parameters, encode, decode, save and load; and the three choices that make a variant."""

from sae.autoencoder.sae import SAE

__all__ = ["SAE"]

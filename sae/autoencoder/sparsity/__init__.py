"""Which latents fire. Adding a rule: one file here, its test, one line below."""

from sae.autoencoder.sparsity.base import Sparsity
from sae.autoencoder.sparsity.topk import TopK

__all__ = ["Sparsity", "TopK"]

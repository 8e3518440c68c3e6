"""Which latents fire. Adding a rule: one file here, its test, one line below."""

from sae.autoencoder.sparsity.base import Encoded, Sparsity
from sae.autoencoder.sparsity.batch_topk import BatchTopK
from sae.autoencoder.sparsity.gated import Gated
from sae.autoencoder.sparsity.jumprelu import JumpReLU
from sae.autoencoder.sparsity.relu import ReLU
from sae.autoencoder.sparsity.topk import TopK

__all__ = ["BatchTopK", "Encoded", "Gated", "JumpReLU", "ReLU", "Sparsity", "TopK"]

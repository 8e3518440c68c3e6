"""Sparse autoencoders on streamed activations of real models.

`from sae import SAE` is all that is needed to use a trained one; training lives in `sae.lightning`.
"""

from sae.autoencoder import SAE
from sae.errors import UserError

__all__ = ["SAE", "UserError"]

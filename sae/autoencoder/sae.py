"""The autoencoder: four parameters, a site and a sparsity rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae.autoencoder import io
from sae.autoencoder.init import unit_rows
from sae.autoencoder.sites import Autoencode, Site
from sae.autoencoder.sparsity import Sparsity
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.decode import decode
from sae_kernels.decode_error import decode_error


class SAE(nn.Module):
    """x -> codes -> x_hat, with few latents active.

    `W_enc` [d_in, d_sae] is stored latent by latent (its transpose is contiguous), so one latent's
    encoder and decoder weights are each one run of memory for the kernels and the optimiser.
    At the start W_enc is the transpose of W_dec, whose rows have norm 1, and the biases are zero.

    Args:
        d_in: width of the activations read.
        sparsity: which latents fire; holds `d_sae`.
        site: what is read and what is predicted.
        seed: of the starting directions.
        metadata: what is worth knowing later (model, hook, ...); JSON values only; saved along.
    """

    def __init__(
        self,
        d_in: int,
        sparsity: Sparsity,
        *,
        site: Site | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.d_sae = d_in, sparsity.d_sae
        self.sparsity = sparsity
        self.site = site or Autoencode()
        self.metadata = dict(metadata or {})
        directions = unit_rows(self.d_sae, d_in, seed=seed, dtype=dtype)
        self.W_enc = nn.Parameter(directions.clone().t())
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae, dtype=dtype))
        self.W_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(d_in, dtype=dtype))

    def encode(self, x: Tensor, *, backend: str = "auto") -> Codes:
        """Codes of `x` [batch, d_in]. Raises UserError when the width is another."""
        if x.dim() != 2 or x.shape[1] != self.d_in:
            where = f" at {', '.join(self.site.hooks)}" if self.site.hooks else ""
            raise UserError(
                f"activations of shape {tuple(x.shape)} do not fit: this SAE reads "
                f"[batch, {self.d_in}]{where}"
            )
        return self.sparsity.encode(x.to(self.b_dec.dtype), self, backend=backend)

    def decode(self, codes: Codes, *, backend: str = "auto") -> Tensor:
        """The prediction [batch, d_in] that `codes` stand for."""
        return decode(codes, self.W_dec, self.b_dec, backend=backend)

    def decode_error(
        self, codes: Codes, target: Tensor, *, backend: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        """target [batch, d_in] less the prediction, a constant, and the sum of its squares."""
        return decode_error(codes, self.W_dec, self.b_dec, target, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def folded(self, scale: float) -> SAE:
        """A copy for raw activations, of this SAE, which was trained on `scale` times them."""
        copy = SAE(
            self.d_in,
            self.sparsity,
            site=self.site,
            dtype=self.b_dec.dtype,
            metadata={**self.metadata, "activation_scale": scale},
        ).to(self.b_dec.device)
        copy.load_state_dict(self.state_dict())
        self.sparsity.fold(copy, scale)
        return copy

    def save(self, folder: str | Path) -> None:
        """Write `sae.safetensors` and `sae.json` to `folder`, all or nothing."""
        config = {
            "d_in": self.d_in,
            "sparsity": self.sparsity.to_dict(),
            "site": self.site.to_dict(),
            "dtype": str(self.b_dec.dtype).removeprefix("torch."),
            "metadata": self.metadata,
        }
        io.write(folder, config, self.state_dict())

    @staticmethod
    def load(folder: str | Path, *, device: str | torch.device = "cpu") -> SAE:
        """Read what `save` wrote; raises UserError when anything about it is not as written."""
        config, tensors = io.read(folder)
        try:
            sae = SAE(
                config["d_in"],
                Sparsity.from_dict(config["sparsity"]),
                site=Site.from_dict(config["site"]),
                dtype=getattr(torch, config["dtype"]),
                metadata=config["metadata"],
            )
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder} is not a description of an SAE: {error!r}") from error
        try:
            sae.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the weights in {folder} do not fit their description: {reason}"
            ) from error
        return sae.to(device)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, {self.sparsity}, {self.site}"

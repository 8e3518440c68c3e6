"""What a sparsity rule encodes with: tensors, whoever they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass(frozen=True)
class ExtraParam:
    """A parameter that a sparsity rule has beside the common four: [d_sae], or 0-d.

    Args:
        start: its value before training.
        power: 1 for what is added to pre-activations or compared with them, so that it grows as
            activations do; 0 for a factor.
        per_latent: [d_sae], or else a single number.
        learns: by gradient; else the rule changes it itself, in `Sparsity.post_step`.
        wide: fp32 even where the autoencoder is half precision.
    """

    start: float
    power: int = 1
    per_latent: bool = True
    learns: bool = True
    wide: bool = False


@dataclass(frozen=True)
class Weights:
    """The parameters an encoder reads.

    Args:
        W_enc: [d_in, d_sae], stored latent by latent.
        b_enc: [d_sae].
        W_dec: [d_sae, d_out].
        pre_bias: [d_in], subtracted from x; None where x is not what is predicted.
        extra: the rule's own parameters by name.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    pre_bias: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def latents(self, some: slice) -> Weights:
        """Those of a contiguous run of latents, as views."""
        own = {n: t[some] if t.dim() else t for n, t in self.extra.items()}
        return replace(
            self,
            W_enc=self.W_enc[:, some],
            b_enc=self.b_enc[some],
            W_dec=self.W_dec[some],
            extra=own,
        )

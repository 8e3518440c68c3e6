"""Unrolled: an encoder that is a few iterations of sparse coding (Gregor & LeCun 2010, LISTA)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.base import Sparsity, check_width
from sae.autoencoder.weights import ExtraParam, Weights
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.encode_unrolled import encode_unrolled


@dataclass(frozen=True, kw_only=True)
class Unrolled(Sparsity):
    """z_0 = relu(pre), pre = (x - b_dec) W_enc + b_enc; then, in each layer,
    z <- relu(z + step * (pre - z D W_enc) - theta): what z explains already is not counted twice.

    D [d_sae, d_in] rebuilds x from codes: W_dec where x is what is predicted. Elsewhere W_dec
    writes to another space, and D is the transpose of W_enc with its columns divided by the square
    of their norms. step and theta are learnt, one of each a latent. Needs a penalty in the
    objective, such as L1. A layer costs twice what a dense encoder does, and its backward as much
    again.

    Args:
        d_sae: number of latents.
        layers: how many such layers follow z_0.
        tied: whether all layers share step and theta; else each learns its own.
        step: where steps start. Above 2 / |D W_enc|, some 2 / (1 + sqrt(d_sae / d_in))^2 of random
            directions, codes grow from layer to layer at the start.
        theta: where thresholds start.
    """

    d_sae: int
    layers: int = 2
    tied: bool = True
    step: float = 0.05
    theta: float = 0.01

    def __post_init__(self) -> None:
        check_width(self.d_sae)
        if self.layers < 1:
            raise UserError(
                f"model.sae.layers={self.layers} unrolls nothing; give at least 1, or use ReLU"
            )
        if not self.step > 0:
            raise UserError(f"model.sae.step={self.step} must be positive")
        if not self.theta >= 0:
            raise UserError(f"model.sae.theta={self.theta} must not be negative")

    def _names(self, name: str) -> list[str]:
        """What a parameter is called in each layer."""
        return [name if self.tied else f"{name}_{layer}" for layer in range(1, self.layers + 1)]

    def extra_params(self) -> dict[str, ExtraParam]:
        steps = {name: ExtraParam(self.step, power=0) for name in self._names("step")}
        return steps | {name: ExtraParam(self.theta) for name in self._names("theta")}

    def encode(self, x: Tensor, weights: Weights, *, backend: str = "auto") -> Codes:
        w = weights
        steps, thetas = ([w.extra[name] for name in self._names(n)] for n in ("step", "theta"))
        D = None if w.pre_bias is None else w.W_dec
        return encode_unrolled(
            x, w.W_enc, w.b_enc, D, steps, thetas, w.pre_bias, backend=backend
        )  # fmt: skip

    @property
    def needs_penalty(self) -> bool:
        return True

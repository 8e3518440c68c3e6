"""L1 of the codes, and p-norms that approach L0 (Bricken et al. 2023; Karvonen et al. 2024)."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput
from sae.autoencoder.losses.penalty import Penalty
from sae.errors import UserError
from sae_kernels.deterministic_sum import deterministic_sum

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE

P_LEVELS = 20


@dataclass(frozen=True, kw_only=True)
class L1(Penalty):
    """sum_i f_i^p |d_i| of a token, averaged over the batch.

    f are the activations, or those of the gates for a rule that has separate gates. For p below 1
    the sum is multiplied by sum f / sum f^p as a constant: the value stays that of L1 and only the
    direction of the gradient changes, so that p may fall without a new choice of the coefficient.

    Args:
        coefficient: Weight in the loss; with target_l0, the initial weight.
        target_l0: Target L0 at the end: a controller adjusts the coefficient during the run.
        target_at: Share of the run after which L0 should be at its target; until then it falls,
            from up to eight times as much.
        warmup: Share of the run over which the weight rises from 0.
        decoder_norm: Whether to weight each latent by the norm of its decoder row, summed over
            hooks. No difference while `model.optim.unit_norm` holds rows at norm 1.
        p: The exponent.
        p_end: The exponent at the end of the run; p falls to it linearly.
        p_start_at: Share of the run before p starts to fall.
    """

    target_at: float = 0.9
    decoder_norm: bool = True
    p: float = 1.0
    p_end: float | None = None
    p_start_at: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("p", self.p), ("p_end", self.p_end)):
            if value is not None and not 0 < value <= 1:
                raise UserError(f"L1.{name}={value} must be above 0 and at most 1")

    def check(self, sae: "SAE") -> None:
        super().check(sae)
        if not self.decoder_norm and not sae.unit_norm:
            raise UserError(
                "model.losses L1.decoder_norm=false and model.optim.unit_norm=false: large decoder "
                "rows would "
                "evade the penalty; set one of the two to true"
            )

    def at_progress(self, progress: float) -> "L1":
        if self.p_end is None or progress <= self.p_start_at:
            return self
        share = (progress - self.p_start_at) / max(1 - self.p_start_at, 1e-9)
        share = math.ceil(share * P_LEVELS) / P_LEVELS
        return replace(self, p=self.p + share * (self.p_end - self.p))

    def __call__(self, forward: ForwardOutput) -> Tensor:
        codes = forward.encoded.gate_codes or forward.codes
        values = codes.values.flatten()
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        weights = forward.decoder_norms(codes) if self.decoder_norm else 1.0
        plain = deterministic_sum(values * weights)
        if self.p == 1:
            return plain / codes.batch
        # The slope of f^p at 0 is infinite; an empty slot should have no gradient.
        fires = values > 0
        powers = torch.where(fires, torch.where(fires, values, 1.0).pow(self.p), 0.0)
        total = deterministic_sum(powers * weights)
        tiny = torch.finfo(total.dtype).tiny
        return total * (plain / total.clamp_min(tiny)).detach() / codes.batch

"""L0 of the codes by its straight-through gradient, and smooth substitutes for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput
from sae.autoencoder.losses.penalty import Penalty
from sae.errors import UserError
from sae_kernels.deterministic_sum import deterministic_sum

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class L0(Penalty):
    """Latents per token, averaged over the batch.

    Args:
        coefficient: Weight in the loss; with target_l0, the initial weight.
        target_l0: Target L0 at the end: a controller adjusts the coefficient during the run, except
            for `quadratic`, whose minimum is at the target.
        target_at: Share of the run after which L0 should be at its target; until then it falls,
            from up to eight times as much.
        warmup: Share of the run over which the weight rises from 0.
        kind: `step` counts the latents that fire, and trains only the thresholds of JumpReLU
            (Rajamanoharan et al. 2024, eq. 9); `tanh` is sum tanh(sharpness f |d|), for every rule
            (Anthropic, January 2025); `quadratic` is (L0 / target_l0 - 1)^2 of the L0 that `step`
            counts (Rajamanoharan et al., appendix G).
        sharpness: Sharpness of tanh.
    """

    target_at: float = 0.4
    kind: Literal["step", "tanh", "quadratic"] = "step"
    sharpness: float = 4.0

    @property
    def controller_settings(self) -> dict[str, float]:
        # A threshold moves by one learning rate per step: with the controller's defaults, L0 on a
        # transformer's activations fell to 10 instead of 16.
        return {"gain": 3.0, "rate": 0.003} if self.kind == "step" else {}

    def check(self, sae: "SAE") -> None:
        super().check(sae)
        if self.kind != "tanh" and "threshold" not in sae.sparsity.learned_params():
            raise UserError(
                f"model.losses L0.kind={self.kind} trains thresholds, and "
                f"{type(sae.sparsity).__name__} has "
                "none that learn; use L0 with kind=tanh, or L1"
            )
        if self.kind == "quadratic" and self.target_l0 is None:
            raise UserError("model.losses L0.kind=quadratic needs target_l0; set target_l0 too")

    @property
    def controlled(self) -> bool:
        return super().controlled and self.kind != "quadratic"

    def __call__(self, forward: ForwardOutput) -> Tensor:
        encoded, batch = forward.encoded, forward.codes.batch
        if self.kind == "tanh":
            codes = encoded.gate_codes or encoded.codes
            values = codes.values.flatten()
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            norms = forward.decoder_norms(codes)
            return deterministic_sum((self.sharpness * values * norms).tanh()) / batch
        assert encoded.gates is not None, "a rule whose threshold learns gives gates"
        wide = torch.promote_types(encoded.gates.dtype, torch.float32)
        l0 = deterministic_sum(encoded.gates.to(wide)) / batch
        if self.kind == "step":
            return l0
        assert self.target_l0 is not None, "checked when the SAE was"
        return (l0 / self.target_l0 - 1).square()

"""L0 of the codes by its straight-through gradient, and smooth stand-ins for it."""

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
        coefficient: weight in the loss; with target_l0, the weight to begin with.
        target_l0: latents per token to end with: the coefficient is steered during the run, except
            for `quadratic`, whose minimum it is.
        target_at: share of the run after which L0 is to be there; until then it falls, from up to
            eight times as much.
        warmup: share of the run over which the weight rises from 0.
        kind: `step` counts what fires, and teaches the thresholds of JumpReLU alone (Rajamanoharan
            et al. 2024, eq. 9); `tanh` is sum tanh(sharpness f |d|), for every rule (Anthropic,
            January 2025); `quadratic` is (L0 / target_l0 - 1)^2 of the step's L0 (ibid., app. G).
        sharpness: of tanh.
    """

    target_at: float = 0.4
    kind: Literal["step", "tanh", "quadratic"] = "step"
    sharpness: float = 4.0

    @property
    def steering(self) -> dict[str, float]:
        # Thresholds move by a learning rate at a time: on a transformer's activations L0 fell to 10
        # in place of 16 with the controller's own settings.
        return {"gain": 3.0, "rate": 0.003} if self.kind == "step" else {}

    def check(self, sae: "SAE") -> None:
        super().check(sae)
        if self.kind != "tanh" and "threshold" not in sae.sparsity.learned_params():
            raise UserError(
                f"model.losses L0.kind={self.kind} teaches thresholds, and "
                f"{type(sae.sparsity).__name__} has none that learn; use L0 with kind=tanh, or L1"
            )
        if self.kind == "quadratic" and self.target_l0 is None:
            raise UserError("model.losses L0.kind=quadratic needs target_l0")

    @property
    def controlled_term(self) -> bool:
        return super().controlled_term and self.kind != "quadratic"

    def __call__(self, forward: ForwardOutput) -> Tensor:
        encoded, batch = forward.encoded, forward.codes.batch
        if self.kind == "tanh":
            codes = encoded.gate_codes or encoded.codes
            values = codes.values.flatten()
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            norms = forward.decoder_norms(codes)
            return deterministic_sum((self.sharpness * values * norms).tanh()) / batch
        wide = torch.promote_types(encoded.gates.dtype, torch.float32)
        l0 = deterministic_sum(encoded.gates.to(wide)) / batch
        return l0 if self.kind == "step" else (l0 / self.target_l0 - 1).square()

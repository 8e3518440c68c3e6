"""The effect of the prediction on the model's output (Braun et al. 2024, 2405.12241)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.autoencoder.losses.base import ForwardOutput, LossTerm, total_variance
from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EndToEnd(LossTerm):
    """The divergence of the language model's output if the prediction replaces its activations.

    It is a mean over the positions whose next token is real text, in nats. Batches consist of full
    contexts, and the model runs to its end twice per step, on all contexts of a batch at once;
    logits take about 5 * batch_size * vocabulary numbers. Codes are those of the clean activations,
    also if several hooks are predicted.

    Args:
        coefficient: Weight in the loss.
        kind: `kl` for KL(clean || spliced) of the next-token distributions; `ce` for the
            cross-entropy of the spliced one.
        downstream: Weight of a further summand: the FVU of activations after the predicted hooks,
            averaged over the later hooks among `data.source.hooks`.
    """

    coefficient: float = 1.0
    kind: Literal["kl", "ce"] = "kl"
    downstream: float = 0.0

    full_contexts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.downstream < 0:
            raise UserError(
                f"model.losses EndToEnd.downstream={self.downstream} is negative; give 0 or more"
            )

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, model_pass = forward.sae, forward.model_pass
        if model_pass is None or forward.scale is None:
            raise UserError(
                "model.losses EndToEnd runs a language model, and this batch comes without one; "
                "read it from a Stream with full_contexts=True"
            )
        y_hat = sae.decode(forward.codes, forward.x, backend=forward.backend)
        logits, later_acts = model_pass(forward.unscaled(sae.site.split(y_hat)))
        log_q = _wide(logits).log_softmax(-1)
        if self.kind == "kl":
            log_p = _wide(model_pass.logits).log_softmax(-1)
            loss = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
        else:
            loss = F.nll_loss(log_q, model_pass.targets, reduction="sum")
        loss = loss / max(len(model_pass.targets), 1)
        if not self.downstream:
            return loss
        if not later_acts:
            raise UserError(
                f"model.losses EndToEnd.downstream={self.downstream} needs activations after "
                f"{', '.join(sae.site.predicts)}; add later modules to data.source.hooks"
            )
        errors = [
            (_wide(model_pass.acts[hook]) - _wide(x)).square().sum()
            / total_variance(_wide(model_pass.acts[hook]))
            for hook, x in later_acts.items()
        ]
        return loss + self.downstream * sum(errors) / len(errors)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""Base class of loss terms, and the forward pass that a term is computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import torch
from torch import Tensor

from sae.argument_types import describe
from sae.autoencoder.registry import Registered
from sae_kernels.deterministic_sum import deterministic_sum

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE
    from sae.autoencoder.sparsity import EncoderOutput
    from sae_kernels.codes import Codes


class ModelPass(Protocol):
    """The forward pass of a frozen language model that gave a batch; calling it runs it again."""

    @property
    def acts(self) -> Mapping[str, Tensor]:
        """{hook: [batch, width]} of every harvested hook, neither scaled nor shifted."""
        ...

    @property
    def logits(self) -> Tensor:
        """Logits at the positions whose next token is real text, [m, vocab]."""
        ...

    @property
    def targets(self) -> Tensor:
        """The next tokens at those positions, int64 [m]."""
        ...

    def __call__(self, predictions: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits, and the activations of later hooks, with predictions in place.

        Both are differentiable in the predictions {hook: [batch, width]}.
        """
        ...


@dataclass
class ForwardOutput:
    """One forward pass, as the loss terms see it.

    Args:
        sae: The SAE.
        x: The activations that were read, [batch, d_in].
        target: What the codes should predict, [batch, d_out]; the skip's part is subtracted.
        encoded: The sparse codes of x, and what penalties need.
        residual: target minus prediction, [batch, d_out], without gradient.
        squared_error: Sum over the batch of |target - prediction|^2, 0-d, differentiable.
        variance: Sum over the batch of |y - its batch mean|^2, 0-d; y is what codes and skip
            predict together.
        dead_list: Latents that were dead when the list was made, int64 [n]; it may be some steps
            old.
        still_dead: Which of `dead_list` are dead now, bool [n].
        step: Number of steps before this one, int64, 0-d, on the device; seeds random draws.
        backend: Backend of the kernels.
        model_pass: The forward pass of the model that gave the batch, if a term needs it.
        scale: The factor that the activations of each hook were multiplied by.
        shift: What was then added to them, {hook: [width]}; None for nothing.
    """

    sae: SAE
    x: Tensor
    target: Tensor
    encoded: EncoderOutput
    residual: Tensor
    squared_error: Tensor
    variance: Tensor
    dead_list: Tensor
    still_dead: Tensor
    step: Tensor
    backend: str = "auto"
    model_pass: ModelPass | None = None
    scale: Mapping[str, float] | None = None
    shift: Mapping[str, Tensor] | None = None

    @property
    def codes(self) -> Codes:
        """The sparse codes of x."""
        return self.encoded.codes

    def unscaled(self, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return predictions {hook: [batch, width]} in the unit of the model's activations."""
        assert self.scale is not None
        shift = self.shift or {}
        return {
            hook: ((y_hat - shift[hook]).to(y_hat.dtype) if hook in shift else y_hat)
            / self.scale[hook]
            for hook, y_hat in predictions.items()
        }

    def decoder_norms(self, codes: Codes) -> Tensor | float:
        """Return the norm of every slot's decoder row, or 1 if training holds all rows at 1."""
        if self.sae.unit_norm:
            return 1.0
        return self.sae.decoder_norms()[codes.indices.flatten()]


def total_variance(x: Tensor) -> Tensor:
    """Return sum |x - mean(x)|^2 over the rows of x [batch, width]: 0-d, at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Row norms first: one norm of the whole matrix keeps few running sums, and is off by 1e-5.
    return deterministic_sum(torch.linalg.vector_norm(x - x.mean(0), dim=1, dtype=wide).square())


class LossTerm(Registered, ABC, family="model.losses"):
    """One summand of the loss: `coefficient` times what calling it returns."""

    coefficient: float

    penalty: ClassVar[bool] = False
    """True if the term keeps latents from firing."""
    full_contexts: ClassVar[bool] = False
    """True if the term needs `ForwardOutput.model_pass`."""
    full_decoder_gradient: ClassVar[bool] = False
    """True if its gradient of W_dec is a dense matrix, not parts of the rows that fired."""
    target_l0: float | None = None
    """The L0 that the run should end with, or None."""
    target_at: float = 1.0
    """Share of the run after which L0 should be at its target."""
    warmup: float = 0.0
    """Share of the run over which the coefficient rises from 0."""

    @classmethod
    def setting(cls, field: str) -> str:
        return f"{cls.family} {cls.__name__}.{field}"

    @abstractmethod
    def __call__(self, forward: ForwardOutput) -> Tensor:
        """Return the term without its coefficient: 0-d, differentiable in the parameters."""

    @property
    def controlled(self) -> bool:
        """True if a controller sets the coefficient so that L0 reaches `target_l0`."""
        return False

    @property
    def controller_settings(self) -> dict[str, float]:
        """Settings of the L0 controller that this term needs to be other than the defaults."""
        return {}

    def check(self, sae: SAE) -> None:
        """Raise UserError if the term does not apply to `sae`."""

    def max_dead_latents(self, sae: SAE) -> int:
        """Return how long `ForwardOutput.dead_list` must be allowed to get for this term."""
        return 0

    def at_progress(self, progress: float) -> Self:
        """Return the term at a share of the run, from 0 to 1."""
        return self


describe(LossTerm, "a loss term such as FVU()", "loss terms, such as [FVU()]")

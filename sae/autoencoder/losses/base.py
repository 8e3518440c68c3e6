"""What every term of the objective is given and answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import torch
from torch import Tensor

from sae.autoencoder.registry import Registered
from sae_kernels.deterministic_sum import deterministic_sum

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE
    from sae.autoencoder.sparsity import EncoderOutput
    from sae_kernels.codes import Codes


class Run(Protocol):
    """A frozen language model on the contexts that a batch is all of, and how to run it again."""

    acts: Mapping[str, Tensor]
    """Hook -> [batch, width], not scaled: of every hook that is harvested."""
    logits: Tensor
    """[m, vocab], at the positions whose next token is real text."""
    targets: Tensor
    """int64 [m]: those next tokens."""

    def __call__(self, predictions: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`logits`, and `acts` of hooks behind, with predictions {hook: [batch, width]} in place:
        differentiable in these."""


@dataclass
class ForwardOutput:
    """One forward pass, as the terms of the objective see it.

    Args:
        sae: the autoencoder.
        x: what was read [batch, d_in].
        target: what the codes are to predict [batch, d_out]; a skip's share is taken off.
        encoded: sparse codes of x, and what penalties need.
        residual: target less the prediction [batch, d_out], a constant.
        squared_error: sum over the batch of |target - prediction|^2: a scalar, differentiable.
        variance: sum over the batch of |y - its batch mean|^2, a scalar; y is what is predicted by
            codes and skip together.
        silent: latents that may be dead, int64 [n]; a list a few steps old.
        is_dead: bool [n], which of `silent` are dead now.
        step: steps done before this one, int64, 0-d, on the device: what a draw depends on.
        backend: of every kernel.
        run: the model's pass that gave the batch, where the objective asks for whole contexts.
        scale: what the activations of each hook were multiplied by.
    """

    sae: SAE
    x: Tensor
    target: Tensor
    encoded: EncoderOutput
    residual: Tensor
    squared_error: Tensor
    variance: Tensor
    silent: Tensor
    is_dead: Tensor
    step: Tensor
    backend: str = "auto"
    run: Run | None = None
    scale: Mapping[str, float] | None = None

    @property
    def codes(self) -> Codes:
        return self.encoded.codes

    def decoder_norms(self, codes: Codes) -> Tensor | float:
        """Norm of the decoder row of every slot; 1 while training holds all rows at norm 1."""
        if self.sae.unit_norm:
            return 1.0
        return self.sae.decoder_norms()[codes.indices.flatten()]


def spread(x: Tensor) -> Tensor:
    """sum |x - mean(x)|^2 over the rows of x [batch, width]: 0-d, at least fp32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Norms of rows first: one norm of everything keeps few running sums, and is off by 1e-5.
    return deterministic_sum(torch.linalg.vector_norm(x - x.mean(0), dim=1, dtype=wide).square())


class LossTerm(Registered, ABC, family="model.losses"):
    """One summand of the loss."""

    coefficient: float
    penalty: ClassVar[bool] = False  # whether it keeps latents from firing
    full_contexts: ClassVar[bool] = False  # whether it needs `Forward.run`

    @abstractmethod
    def __call__(self, forward: ForwardOutput) -> Tensor:
        """The term before its coefficient: a scalar, differentiable in the parameters."""

    def check(self, sae: SAE) -> None:
        """Raises UserError where the term means nothing for `sae`."""

    def max_dead_latents(self, sae: SAE) -> int:
        """The most dead latents that `forward.silent` need hold for it."""
        return 0

    def at_progress(self, progress: float) -> Self:
        """The term as it is at a share of the run, from 0 to 1."""
        return self

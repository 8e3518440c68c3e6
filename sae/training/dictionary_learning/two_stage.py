"""A run in two parts: sparse coding learns a dictionary, then an encoder is trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.losses import LossTerm, ModelPass
from sae.errors import UserError
from sae.inference.result import ragged_codes, sparse_rows
from sae.training.dictionary_learning.config import SparseCoding
from sae.training.dictionary_learning.learn import DictionaryLearner
from sae.training.learner import Learner
from sae.training.optim_config import OptimConfig
from sae_kernels.codes import Codes


class SparseCodingLearner(Learner):
    """A `Learner` that learns W_dec and b_dec by sparse coding, and then the rest with gradients.

    In the first part `DictionaryLearner` learns W_dec and b_dec from the batches. In the second
    part they do not change, and the other parameters of `sae` are trained on the losses.

    In the first part the SAE always has the best dictionary so far, with its transpose as encoder,
    and `predict` computes codes by FISTA. The sums for the dictionary take restarts * d_sae^2
    numbers, in checkpoints too.

    Args:
        settings: Settings of the first part.
        kwargs: As `Learner`.

    Raises:
        UserError: The SAE reads something else than it predicts, it has no encoder to train,
            `resample_every` is set, one of the parts would have no step, or `Learner` raises it.
    """

    def __init__(
        self,
        sae: SAE,
        losses: Sequence[LossTerm],
        optim: OptimConfig,
        *,
        settings: SparseCoding,
        total_steps: int,
        seed: int = 0,
        resample_every: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not sae.reconstructs_input:
            raise UserError(
                "model.sparse_coding learns a dictionary of the activations it reads, but "
                f"{type(sae.site).__name__} predicts something else; use Autoencoder or Crosscoder"
            )
        if not sae.sparsity.learns_encoder:
            raise UserError(
                "model.sparse_coding trains an encoder for its dictionary, but "
                f"{type(sae.sparsity).__name__} has none; use another model.sae"
            )
        if resample_every is not None:
            raise UserError(
                f"model.resample_every={resample_every} changes the dictionary that "
                "model.sparse_coding learned; leave it out"
            )
        start_step = round(settings.share * total_steps)
        if not 0 < start_step < total_steps:
            raise UserError(
                f"model.sparse_coding.share={settings.share} of {total_steps} steps leaves no step "
                "for the dictionary or none for the encoder; train for longer"
            )
        for param in (sae.W_dec, sae.b_dec):
            param.requires_grad_(False)
        super().__init__(
            sae, losses, optim, total_steps=total_steps, start_step=start_step, seed=seed, **kwargs
        )
        self.coder = DictionaryLearner(
            sae.d_in,
            sae.d_sae,
            settings,
            steps=start_step,
            seed=seed,
            dtype=torch.promote_types(sae.W_dec.dtype, torch.float32),
        )

    @property
    def in_first_part(self) -> bool:
        """True if the next step is one of sparse coding."""
        return self.steps < self.start_step

    @torch.no_grad()
    def initialise(self, acts: dict[str, Tensor], *, center: bool = True) -> None:
        """Set scales and shifts as `Learner` does, but shift nothing if `bias` is False."""
        super().initialise(acts, center=center and self.coder.settings.bias)

    def step(
        self,
        *micro: dict[str, Tensor],
        model_passes: Sequence[ModelPass | None] | None = None,
    ) -> None:
        """Train on one batch, or on micro-batches, as `Learner.step` does."""
        if not self.in_first_part:
            super().step(*micro, model_passes=model_passes)
            return
        self.coder.step(torch.cat([self.scaled_pair(acts)[0] for acts in micro]))
        self.copy_dictionary()
        self.steps += 1
        self.tokens += sum(len(next(iter(acts.values()))) for acts in micro)

    @torch.no_grad()
    def copy_dictionary(self) -> None:
        """Copy the best dictionary so far to W_dec and b_dec, and its transpose to W_enc."""
        best = self.coder.best()
        self.sae.W_dec.copy_(self.coder.D[best])
        self.sae.W_enc.copy_(self.coder.D[best].t())
        self.sae.b_dec.copy_(self.coder.b[best])

    @torch.no_grad()
    def predict(
        self, acts: dict[str, Tensor], sae: SAE | None = None
    ) -> tuple[Tensor, Tensor, Codes]:
        """Return y, its prediction and the codes, by FISTA in the first part."""
        if not self.in_first_part:
            return super().predict(acts, sae)
        x, y = self.scaled_pair(acts)
        best = self.coder.best()
        z = self.coder.codes(x.to(self.coder.D), self.coder.settings.iterations)[best]
        y_hat = self.coder.b[best] + z @ self.coder.D[best]
        return y, y_hat.to(y.dtype), ragged_codes([sparse_rows(z)], self.sae.d_sae)

    def pop_metrics(self) -> dict[str, float]:
        """Return the training metrics; in the first part those of the dictionary."""
        return self.coder.pop_metrics() if self.steps <= self.start_step else super().pop_metrics()

"""A run in two parts: a dictionary by sparse coding, then an encoder trained to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.losses import LossTerm, Run
from sae.errors import UserError
from sae.inference.result import ragged_codes, sparse_rows
from sae.training.dictionary_learning.config import SparseCoding
from sae.training.dictionary_learning.learn import DictionaryLearner
from sae.training.learner import Learner
from sae.training.optim_config import OptimConfig
from sae_kernels.codes import Codes


class SparseCodingLearner(Learner):
    """A `Learner` whose W_dec and b_dec are learnt by `DictionaryLearner` on the first batches, and
    held from then on; on the others the rest of `sae` is trained by the objective.

    In the first part the SAE always holds the best dictionary so far and its transpose as encoder,
    and `predict` codes by FISTA. The sums kept for the dictionary take restarts * d_sae^2 numbers,
    in checkpoints too.

    Args:
        settings: of the first part.
        more: as `Learner`.

    Raises UserError, besides those of `Learner`, where what is read is not what is predicted, where
    there is no encoder to train, with resampling, and where either part would have no step.
    """

    def __init__(
        self,
        sae: SAE,
        objective: Sequence[LossTerm],
        optim: OptimConfig,
        *,
        settings: SparseCoding,
        total_steps: int,
        seed: int = 0,
        resample_every: int | None = None,
        **more: Any,
    ) -> None:
        if not sae.reconstructs_input:
            raise UserError(
                "model.sparse_coding learns a dictionary of what is read, and "
                f"{type(sae.site).__name__} predicts something else; use Autoencoder or Crosscoder"
            )
        if not sae.sparsity.learns_encoder:
            raise UserError(
                "model.sparse_coding trains an encoder to its dictionary, and "
                f"{type(sae.sparsity).__name__} has none; use another model.sae"
            )
        if resample_every is not None:
            raise UserError(
                f"model.resample_every={resample_every} changes the dictionary that "
                "model.sparse_coding holds; leave it out"
            )
        start_step = round(settings.share * total_steps)
        if not 0 < start_step < total_steps:
            raise UserError(
                f"model.sparse_coding.share={settings.share} of {total_steps} steps leaves no step "
                "for the dictionary or none for the encoder; train for longer"
            )
        for held in (sae.W_dec, sae.b_dec):
            held.requires_grad_(False)
        super().__init__(
            sae, objective, optim, total_steps=total_steps, start_step=start_step, seed=seed, **more
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
    def coding(self) -> bool:
        """Whether the coming step is of the first part."""
        return self.steps < self.start_step

    @torch.no_grad()
    def initialise(self, acts: dict[str, Tensor]) -> None:
        """As `Learner`; without `bias`, b_dec becomes 0."""
        super().initialise(acts)
        if self.coder.settings.bias:
            self.coder.b.copy_(self.sae.b_dec.expand_as(self.coder.b))
        else:
            self.sae.b_dec.zero_()

    def step(
        self,
        *micro: dict[str, Tensor],
        runs: Sequence[Run | None] | None = None,
    ) -> None:
        """As `Learner`."""
        if not self.coding:
            super().step(*micro, runs=runs)
            return
        self.coder.step(torch.cat([self.scaled_pair(acts)[0] for acts in micro]))
        self.hold()
        self.steps += 1
        self.tokens += sum(len(next(iter(acts.values()))) for acts in micro)

    @torch.no_grad()
    def hold(self) -> None:
        """The best dictionary so far into the SAE, and its transpose into the encoder."""
        best = self.coder.best()
        self.sae.W_dec.copy_(self.coder.D[best])
        self.sae.W_enc.copy_(self.coder.D[best].t())
        self.sae.b_dec.copy_(self.coder.b[best])

    @torch.no_grad()
    def predict(
        self, acts: dict[str, Tensor], sae: SAE | None = None
    ) -> tuple[Tensor, Tensor, Codes]:
        """As `Learner`; in the first part by FISTA."""
        if not self.coding:
            return super().predict(acts, sae)
        x, y = self.scaled_pair(acts)
        best = self.coder.best()
        z = self.coder.codes(x.to(self.coder.D), self.coder.settings.iterations)[best]
        y_hat = self.coder.b[best] + z @ self.coder.D[best]
        return y, y_hat.to(y.dtype), ragged_codes([sparse_rows(z)], self.sae.d_sae)

    def pop_metrics(self) -> dict[str, float]:
        """As `Learner`; in the first part the figures of the dictionary."""
        return self.coder.pop_metrics() if self.steps <= self.start_step else super().pop_metrics()

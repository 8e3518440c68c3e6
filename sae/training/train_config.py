"""The settings of one SAE of a run: what it is, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch

from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, AuxK, LossTerm
from sae.autoencoder.sites import Autoencoder, Site
from sae.autoencoder.sparsity import Sparsity
from sae.errors import UserError
from sae.training import Learner, OptimConfig, SparseCoding, SparseCodingLearner, defaults


class TrainConfig:
    """A sparse autoencoder to be trained: three choices and an optimiser.

    Args:
        sae: which latents fire, and how many latents there are.
        site: what is read and what is predicted; one hook to itself when left out.
        losses: terms of the loss; when left out FVU and AuxK, or FVU alone with
        CrossLayerTranscoder.
        optim: the optimiser's settings and the schedule.
        dead_after: tokens without firing after which a latent is dead; a rule says when left out.
        refresh_steps: how often the list of dead latents for AuxK is drawn up, in steps; likewise.
        cuda_graph: record the step once and replay it; on a GPU this helps where d_sae is 32,768
            or less, since there launching kernels takes longer than running them.
        accumulate: micro-batches of `data.batch_size` that one step learns from, where a larger
            batch would not fit: the same as one of that size for losses that are means over tokens;
            FVU and AuxK take the variance of each, and BatchTopK decides in each which latents
            fire. Everything is counted in steps, `trainer.max_steps` included.
        dtype: of the parameters; in bfloat16 the optimiser keeps fp32 copies, and thresholds stay
            fp32.
        ema: decay of a moving average of the weights (0.999 looks back some 1,000 steps), saved as
            `sae_ema/` beside `sae/` and judged too; none when left out.
        resample_every: steps between two times that dead latents start anew where the error is
            largest (Bricken et al. 2023); never when left out, and never while the learning rate
            falls at the end.
        sparse_coding: how the dictionary is learnt without gradients in the first part of the run;
            the encoder is then trained to it. When left out both are trained at once.
        seed: of the starting directions; that of the run (`--seed`) when left out.
    """

    def __init__(
        self,
        sae: Sparsity,
        site: Site | None = None,
        losses: list[LossTerm] | None = None,
        optim: OptimConfig = OptimConfig(),  # noqa: B008 (frozen; the CLI reads its defaults)
        dead_after: int | None = None,
        refresh_steps: int | None = None,
        cuda_graph: bool = False,
        accumulate: int = 1,
        dtype: Literal["float32", "bfloat16"] = "float32",
        ema: float | None = None,
        resample_every: int | None = None,
        sparse_coding: SparseCoding | None = None,
        seed: int | None = None,
    ) -> None:
        counts = {
            "dead_after": dead_after,
            "refresh_steps": refresh_steps,
            "accumulate": accumulate,
            "resample_every": resample_every,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise UserError(f"model.{name}={value}; give at least 1, or leave out")
        if sparse_coding is not None and cuda_graph:
            raise UserError(
                "model.cuda_graph=true cannot record the steps of model.sparse_coding; leave it out"
            )
        self.sparsity, self.sparse_coding = sae, sparse_coding
        self.site = site or Autoencoder()
        alone = self.site.groups > 1  # AuxK does not apply there
        self.losses = losses or ([FVU()] if alone else [FVU(), AuxK()])
        self.full_contexts = any(term.full_contexts for term in self.losses)
        if self.full_contexts and cuda_graph:
            names = ", ".join(type(t).__name__ for t in self.losses if t.full_contexts)
            raise UserError(
                f"model.cuda_graph=true cannot record the language model that {names} runs; "
                "leave it out"
            )
        self.optim = optim
        self.dead_after, self.refresh_steps, self.seed = dead_after, refresh_steps, seed or 0
        self.cuda_graph, self.resample_every = cuda_graph, resample_every
        self.accumulate = accumulate
        self.sae_dtype, self.ema = getattr(torch, dtype), ema

    def build_learner(self, widths: Mapping[str, int], batch_size: int, steps: int) -> Learner:
        """Return a learner with these settings, for hooks of these widths and `steps` steps."""
        site = self.site.bind(widths)
        sae = SAE(
            site.d_in,
            self.sparsity,
            site=site,
            d_out=site.d_out,
            seed=self.seed,
            dtype=self.sae_dtype,
        )
        batch_size *= self.accumulate
        l0 = defaults.target_l0_of(self.sparsity, self.losses)
        dead_after = self.dead_after or defaults.dead_after(sae.d_sae, l0, steps * batch_size)
        kind = Learner
        if self.sparse_coding is not None:
            kind = partial(SparseCodingLearner, settings=self.sparse_coding)
        return kind(
            sae,
            self.losses,
            self.optim,
            total_steps=steps,
            dead_after=dead_after,
            refresh_steps=self.refresh_steps or defaults.refresh_steps(dead_after, batch_size),
            resample_every=self.resample_every,
            seed=self.seed,
            ema=self.ema,
        )

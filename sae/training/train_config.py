"""Settings of one SAE of a run and of its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch

from sae.argument_types import checked_arguments
from sae.autoencoder import SAE, io
from sae.autoencoder.losses import FVU, AuxK, LossTerm
from sae.autoencoder.sites import Autoencoder, Site
from sae.autoencoder.sparsity import Sparsity
from sae.errors import UserError
from sae.training import Learner, OptimConfig, SparseCoding, SparseCodingLearner, defaults


class TrainConfig:
    """Settings of one SAE and of its training.

    Args:
        sae: Sparsity rule, which decides which latents fire, and the number of latents.
        site: Hooks that are read and predicted. If left out, one hook is read and predicted.
        losses: Terms of the loss. If left out, FVU and AuxK, or only FVU with CrossLayerTranscoder.
        optim: Settings of the optimiser and its learning-rate schedule.
        dead_after: Tokens without firing after which a latent is dead. If left out, a rule sets it
            from d_sae, L0 and the length of the run.
        refresh_steps: Steps between two updates of the list of dead latents for AuxK. If left out,
            a rule sets it from dead_after and the batch size.
        cuda_graph: Record the step once as a CUDA graph and replay it. This helps if d_sae is
            32,768 or less, because launching kernels then takes longer than running them.
        accumulate: Number of micro-batches of `data.batch_size` in a step, for batches that do not
            fit in memory. The result is that of one large batch for losses that are means over
            tokens. FVU and AuxK use the variance of each micro-batch, and BatchTopK selects latents
            in each. All counts are in steps, `trainer.max_steps` included.
        dtype: dtype of the parameters. With bfloat16, the optimiser has fp32 copies and thresholds
            are fp32.
        ema: Decay of a moving average of the weights (0.999 averages over about 1,000 steps). The
            average is saved as `sae_ema/` beside `sae/` and evaluated too. No average if left out.
        resample_every: Steps between two resamplings, in which dead latents restart on tokens with
            a large error (Bricken et al. 2023). Latents are not resampled if this is left out, or
            while the learning rate falls at the end of the run.
        sparse_coding: Settings of a first part of the run, which learns the dictionary without
            gradients before the encoder is trained. If left out, both are trained together.
        seed: Seed of the starting directions; that of the run (`--seed`) if left out.

    Raises:
        UserError: A count is below 1, or settings exclude each other.
    """

    @checked_arguments("model.")
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
                raise UserError(f"model.{name}={value}; give at least 1, or leave it out")
        if sparse_coding is not None and cuda_graph:
            raise UserError(
                "model.cuda_graph=true cannot record the steps of model.sparse_coding; leave it out"
            )
        self.sparsity, self.sparse_coding = sae, sparse_coding
        self.site = site or Autoencoder()
        for name, part in (("model.sae", sae), ("model.site", self.site)):
            io.json_text(part.to_dict(), f"{name}={type(part).__name__}")  # before the training
        sae.check_per_group(self.site.groups)
        grouped = self.site.groups > 1  # AuxK does not apply to groups of latents
        self.losses = losses or ([FVU()] if grouped else [FVU(), AuxK()])
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
        """Return a learner with these settings.

        Args:
            widths: Width of each hook, by name.
            batch_size: Tokens in a micro-batch (`data.batch_size`).
            steps: Length of the run.
        """
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
        learner_class: Callable[..., Learner] = Learner
        if self.sparse_coding is not None:
            learner_class = partial(SparseCodingLearner, settings=self.sparse_coding)
        return learner_class(
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

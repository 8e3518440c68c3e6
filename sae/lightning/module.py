"""The LightningModule around `Learner`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import lightning as L
import torch

from sae.activations import Batch
from sae.autoencoder import SAE
from sae.autoencoder.objective import FVU, AuxK, Term
from sae.autoencoder.sites import Autoencode, Site
from sae.autoencoder.sparsity import Sparsity
from sae.errors import UserError
from sae.metrics.codes import Firing
from sae.metrics.fvu import FVU as HeldOutFVU
from sae.training import Learner, OptimConfig, SparseCoding, SparseCodingLearner, defaults
from sae.training.graph import GraphedStep


class SAEModule(L.LightningModule):
    """A sparse autoencoder to be trained: three choices and an optimiser.

    Args:
        sae: which latents fire, and how many latents there are.
        site: what is read and what is predicted; one hook to itself when left out.
        objective: terms of the loss; when left out FVU and AuxK, or FVU alone with CrossLayer.
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
        seed: of the starting directions; set by `--seed`.
    """

    def __init__(
        self,
        sae: Sparsity,
        site: Site | None = None,
        objective: list[Term] | None = None,
        optim: OptimConfig = OptimConfig(),  # noqa: B008 (frozen; the CLI reads its defaults)
        dead_after: int | None = None,
        refresh_steps: int | None = None,
        cuda_graph: bool = False,
        accumulate: int = 1,
        dtype: Literal["float32", "bfloat16"] = "float32",
        ema: float | None = None,
        resample_every: int | None = None,
        sparse_coding: SparseCoding | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
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
        self.site = site or Autoencode()
        alone = self.site.groups > 1  # AuxK does not apply there
        self.objective = objective or ([FVU()] if alone else [FVU(), AuxK()])
        self.whole_contexts = any(term.whole_contexts for term in self.objective)
        if self.whole_contexts and cuda_graph:
            names = ", ".join(type(t).__name__ for t in self.objective if t.whole_contexts)
            raise UserError(
                f"model.cuda_graph=true cannot record the language model that {names} runs; "
                "leave it out"
            )
        self.optim = optim
        self.dead_after, self.refresh_steps, self.seed = dead_after, refresh_steps, seed
        self.cuda_graph, self.resample_every = cuda_graph, resample_every
        self.accumulate = accumulate
        self.sae_dtype, self.ema = getattr(torch, dtype), ema
        # `Learner.step` calls backward and the optimiser itself; under automatic optimisation
        # Lightning would run them, and divide and clone the loss, around every step.
        self.automatic_optimization = False
        self.seconds = 0.0
        self.last_read: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        self.learner = self.learner_for(data.source.widths, data.batch_size, self.trainer.max_steps)

    def learner_for(self, widths: Mapping[str, int], batch_size: int, steps: int) -> Learner:
        """What learns by these settings from hooks of these widths, in `steps` steps."""
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
        l0 = defaults.wanted_l0(self.sparsity, self.objective)
        dead_after = self.dead_after or defaults.dead_after(sae.d_sae, l0, steps * batch_size)
        kind = Learner
        if self.sparse_coding is not None:
            kind = partial(SparseCodingLearner, settings=self.sparse_coding)
        return kind(
            sae,
            self.objective,
            self.optim,
            total_steps=steps,
            dead_after=dead_after,
            refresh_steps=self.refresh_steps or defaults.refresh_steps(dead_after, batch_size),
            resample_every=self.resample_every,
            seed=self.seed,
            ema=self.ema,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.learner.optimizer

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()
        self._read_at = (self.learner.tokens, self.seconds)
        if self.learner.scale is None:
            block = self.trainer.datamodule.stream.first_block()
            self.learner.initialise(block.to(self.device).acts)
        self._step = GraphedStep(self.learner) if self.cuda_graph else self.learner.step

    def training_step(self, batches: list[Batch], batch_idx: int) -> None:
        update = self.optimizers().step
        for at in range(0, len(batches), self.accumulate):
            micro = batches[at : at + self.accumulate]
            runs = {"runs": [batch.run for batch in micro]} if self.whole_contexts else {}
            self._step(*(batch.acts for batch in micro), update=update, **runs)
            now = time.perf_counter()
            self.seconds, self._clock = self.seconds + now - self._clock, now
            # Counted in the learner's own steps: Lightning's global_step has moved already.
            step = self.learner.steps
            if step % self.trainer.log_every_n_steps == 0 or step == self.trainer.max_steps:
                self._log()

    def _log(self) -> None:
        """One row of metrics; the only place in training that reads numbers off the device."""
        read = self.learner.read()
        tokens, seconds = self._read_at
        elapsed = max(self.seconds - seconds, 1e-9)
        self._read_at = (self.learner.tokens, self.seconds)
        self.last_read = {
            **read,
            "tokens": float(self.learner.tokens),
            "seconds": self.seconds,
            "tokens_per_second": (self.learner.tokens - tokens) / elapsed,
        }
        self._write(self.last_read)

    def _write(self, row: dict[str, float]) -> None:
        """Hand a row to every logger. `self.log` would round each number to float32, and costs
        some 1,900 Python calls."""
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step=self.learner.steps)
            logger.save()

    def on_validation_epoch_start(self) -> None:
        self._predict = partial(self.learner.predict, sae=self.learner.judged())
        self._held_out = HeldOutFVU(self.learner.sae.d_out, self.device)
        self._firing = Firing(self.learner.sae.d_sae, self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        y, y_hat, codes = self._predict(batch.acts)
        self._held_out.update(y, y_hat)
        self._firing.update(codes)

    def on_validation_epoch_end(self) -> None:
        del self._predict
        self._clock = time.perf_counter()  # time spent on held-out text is not training time
        if self.trainer.should_stop:  # Lightning validates once more when a run is stopped
            return
        row = {"held_out_fvu": self._held_out.compute(), "held_out_l0": self._firing.l0()}
        self._write(row)
        self.log_dict(row, logger=False)  # for callbacks that watch a metric

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            reason = " ".join(str(error).partition(":")[2].split())
            raise UserError(
                f"the checkpoint is of another run: {reason.replace('torch.Size', '')} "
                f"Resume with the settings it was made with"
            ) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["clock"] = {"seconds": self.seconds, "last_read": self.last_read}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint["clock"]["seconds"]
        self.last_read = checkpoint["clock"]["last_read"]

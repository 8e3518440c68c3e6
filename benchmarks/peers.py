"""Drive the trainers of sparsify, dictionary_learning and SAELens ("peers"), where installed.

Every trainer gets the same activations in the same order, and multiplies them by the same factor,
which makes their mean norm sqrt(d_in); none of the peers normalizes by default. A peer is imported
and driven, never re-implemented:

sparsify: `SparseCoder(d_in, SparseCoderConfig(num_latents, k))` in the order of its `Trainer.fit`
    with `loss_fn="fvu"`: on the first step b_dec = mean of the batch; then per step
    `set_decoder_norm_to_unit_norm`, forward, loss = fvu + auxk_alpha * auxk, backward,
    `remove_gradient_parallel_to_decoder_directions`, optimizer, schedule, its count of dead
    latents. "signum" is its default optimizer (schedule-free `SignSGD`, momentum 0.95, lr 5e-3 /
    sqrt(d_sae / 2**14), evaluated on the averaged weights, which its checkpoints hold); "adam" is
    its other one (lr 2e-4 / sqrt(d_sae / 2**14), 1000 steps of warm-up, then linear to 0).
    auxk_alpha is its default 0. Its Trainer cannot be used as it is, because it runs the language
    model itself and does not shuffle.
dictionary_learning: `TopKTrainer(steps, activation_dim, dict_size, k)` through its own
    `update(step, acts)`; b_dec is the geometric median of the first batch, by its own code. lr 2e-4
    / sqrt(d_sae / 2**14), 1000 steps of warm-up, no decay, AuxK 1/32 after 10 million tokens. It
    refuses a warm-up as long as the run, so a run of 1000 steps or fewer gets the longest warm-up
    that it accepts, which is one step shorter than the run.
saelens: `SAETrainer(SAETrainerConfig, TopKTrainingSAE)` through its own `step(batch)`, which its
    trainer of several SAEs also calls. lr 3e-4, constant, AuxK 1.0 after 1000 steps without firing.

"Tuned" variants take from our config whatever a short run needs and the peer has a setting for, so
that no peer is held back by a default meant for longer runs: our shares of warm-up and decay, and
our dead_after. Their learning rate is 1, 2, 4 and 8 times the peer's default. Our own trainer runs
as configured; the learning rate of the default config is 8 times the usual 2e-4 rule, so the grid
must reach 8.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.trainers import Task, Trainer
from sae_kernels.codes import Codes

LR_FACTORS = (1, 2, 4, 8)


class Sparsify(Trainer):
    """The trainer of sparsify."""

    package, distribution = "sparsify", "eai-sparsify"

    def __init__(
        self, task: Task, optimizer: str, lr_factor: float = 1.0, short_run: bool = False
    ) -> None:
        sparsify = silently(lambda: importlib.import_module("sparsify"))
        self.task = task
        torch.manual_seed(task.seed)
        config = sparsify.SparseCoderConfig(num_latents=task.d_sae, k=task.k)
        self.coder = sparsify.SparseCoder(task.d_in, config, dtype=torch.float32)
        self.trainer = sparsify.TrainConfig(sae=config)
        dead_after = task.config.dead_after if short_run else self.trainer.dead_feature_threshold
        self.dead_after = dead_after
        self.since_fired = torch.zeros(task.d_sae, dtype=torch.int64)
        self.fresh, self.finished, self.schedule = True, False, None
        default_lr = (5e-3 if optimizer == "signum" else 2e-4) / (task.d_sae / 2**14) ** 0.5
        self.lr = default_lr * lr_factor
        parameters = self.coder.parameters()
        if optimizer == "signum":
            from schedulefree import ScheduleFreeWrapper
            from sparsify.sign_sgd import SignSGD

            self.optimizer = ScheduleFreeWrapper(SignSGD(parameters, lr=self.lr), momentum=0.95)
            self.optimizer.train()
        else:
            from transformers import get_linear_schedule_with_warmup

            self.optimizer = torch.optim.Adam(parameters, lr=self.lr)
            warmup = task.warmup_steps if short_run else self.trainer.lr_warmup_steps
            self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, task.steps)

    @classmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        default = {"default (signum)": {"optimizer": "signum"}, "adam": {"optimizer": "adam"}}
        if not tuned:
            return default
        # Sign descent has no warm-up that could be shortened, so only its learning rate differs.
        return {
            f"tuned ({name}, lr x {factor})": {
                "optimizer": name,
                "lr_factor": factor,
                "short_run": True,
            }
            for name in ("adam", "signum")
            for factor in LR_FACTORS
            if (name, factor) != ("signum", 1)
        }

    def step(self, acts: Tensor) -> None:
        x = acts * self.task.scale
        if self.fresh:
            self.coder.b_dec.data = x.mean(0)
            self.fresh = False
        self.coder.set_decoder_norm_to_unit_norm()
        alpha = self.trainer.auxk_alpha
        dead = self.since_fired > self.dead_after if alpha > 0 else None
        out = self.coder(x, dead_mask=dead)
        (out.fvu + alpha * out.auxk_loss).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule is not None:
            self.schedule.step()
        self.since_fired += len(x)
        self.since_fired[out.latent_indices.flatten()] = 0

    def predict(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        if not self.finished:
            self.coder.set_decoder_norm_to_unit_norm()  # the next step does this too
        code = self.coder.encode(x)
        x_hat = self.coder.decode(code.top_acts, code.top_indices)
        return x, x_hat, Codes(code.top_acts, code.top_indices, self.task.d_sae)

    def finish(self) -> None:
        self.finished = True
        if self.schedule is None:
            self.optimizer.eval()


class DictionaryLearning(Trainer):
    """The TopK trainer of dictionary_learning."""

    package, distribution = "dictionary_learning", "dictionary-learning"

    def __init__(self, task: Task, lr_factor: float = 1.0, short_run: bool = False) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.task, self.done = task, 0
        options: dict[str, Any] = {"warmup_steps": min(1000, task.steps - 1)}
        if short_run:
            options = {"warmup_steps": task.warmup_steps}
            if task.decay_steps:
                options["decay_start"] = task.steps - task.decay_steps
        self.lr = 2e-4 / (task.d_sae / 2**14) ** 0.5 * lr_factor
        self.trainer = TopKTrainer(
            steps=task.steps,
            activation_dim=task.d_in,
            dict_size=task.d_sae,
            k=task.k,
            layer=0,
            lm_name="",
            lr=self.lr,
            seed=task.seed,
            device="cpu",
            **options,
        )
        if short_run:
            self.trainer.dead_feature_threshold = task.config.dead_after

    @classmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        return tuned_variants() if tuned else {"default": {}}

    def step(self, acts: Tensor) -> None:
        self.trainer.update(self.done, acts * self.task.scale)
        self.done += 1

    def predict(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        dense, values, indices, _ = self.trainer.ae.encode(x, return_topk=True)
        return x, self.trainer.ae.decode(dense), Codes(values, indices, self.task.d_sae)


class SAELens(Trainer):
    """The TopK trainer of SAELens."""

    package, distribution = "sae_lens", "sae-lens"

    def __init__(self, task: Task, lr_factor: float = 1.0, short_run: bool = False) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.task = task
        torch.manual_seed(task.seed)
        self.coder = TopKTrainingSAE(
            TopKTrainingSAEConfig(d_in=task.d_in, d_sae=task.d_sae, k=task.k)
        )
        options: dict[str, Any] = {}
        if short_run:
            options = {
                "lr_warm_up_steps": task.warmup_steps,
                "lr_decay_steps": task.decay_steps,
                "dead_feature_window": max(1, task.config.dead_after // task.batch),
            }
        self.lr = 3e-4 * lr_factor
        config = SAETrainerConfig(
            total_training_samples=task.steps * task.batch,
            train_batch_size_samples=task.batch,
            lr=self.lr,
            lr_end=self.lr / 10,  # required, although its constant schedule does not use it
            **options,
        )
        self.trainer = SAETrainer(config, self.coder, data_provider=iter(()))

    @classmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        return tuned_variants() if tuned else {"default": {}}

    def step(self, acts: Tensor) -> None:
        self.trainer.step(acts * self.task.scale)
        self.trainer.n_training_steps += 1

    def predict(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        dense = self.coder.encode(x)
        top = dense.topk(self.task.k, sorted=False)
        return x, self.coder.decode(dense), Codes(top.values, top.indices, self.task.d_sae)


def tuned_variants() -> dict[str, dict[str, Any]]:
    """Return the variants with our schedule and several learning rates."""
    return {
        f"tuned (lr x {factor})": {"lr_factor": factor, "short_run": True} for factor in LR_FACTORS
    }


def silently(call: Callable[[], Any]) -> Any:
    """Return what `call` returns, and drop what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call()

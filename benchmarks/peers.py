"""How the trainers of sparsify, dictionary_learning and SAELens are driven, where installed.

Every contender gets the same raw activations in the same order, and multiplies them by the same
factor, which makes the mean norm sqrt(d_in); none of the peers normalises by default. A peer is
imported and driven, never re-implemented, as follows.

sparsify: `SparseCoder(d_in, SparseCoderConfig(num_latents, k))` in the order of its `Trainer.fit`
    with `loss_fn="fvu"`: on the first step b_dec = mean of the batch; then per step
    `set_decoder_norm_to_unit_norm`, forward, loss = fvu + auxk_alpha * auxk, backward,
    `remove_gradient_parallel_to_decoder_directions`, optimiser, schedule, its count of dead
    latents. "signum" is its default optimiser (schedule-free `SignSGD`, momentum 0.95, lr 5e-3 /
    sqrt(d_sae / 2**14), judged on the averaged weights, as its checkpoints are); "adam" its other
    one (lr 2e-4 / sqrt(d_sae / 2**14), 1000 steps of warm-up, then linear to 0). auxk_alpha is its
    default 0. Its Trainer cannot be used whole: it runs the language model itself and shuffles
    nothing.
dictionary_learning: `TopKTrainer(steps, activation_dim, dict_size, k)` through its own
    `update(step, acts)`; b_dec is the geometric median of the first batch, by its own code. lr 2e-4
    / sqrt(d_sae / 2**14), 1000 steps of warm-up, no decay, AuxK 1/32 after 10 million tokens. It
    refuses a warm-up that is as long as the run; a run of 1000 steps or fewer gets the
    longest it accepts, all but one step.
saelens: `SAETrainer(SAETrainerConfig, TopKTrainingSAE)` through its own `step(batch)`, the seam its
    multi-SAE trainer uses. lr 3e-4, constant, AuxK 1.0 after 1000 steps without firing.

Variants "tuned" take from our config what a short run needs and the peer has a knob for, so that
none is held back by a default meant for longer runs: our warm-up and decay shares, our dead_after;
and the learning rate is 1, 2, 4 and 8 times the peer's default. Ours is run as configured; the
default config's own rate is 8 times the usual 2e-4 rule, so 8 is where the grid must reach.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.trainers import Contender, Task
from sae_kernels.codes import Codes

LR_FACTORS = (1, 2, 4, 8)


class Sparsify(Contender):
    package, distribution = "sparsify", "eai-sparsify"

    def __init__(
        self, task: Task, optimizer: str, lr_factor: float = 1.0, short_run: bool = False
    ) -> None:
        sparsify = quietly(lambda: importlib.import_module("sparsify"))
        self.task = task
        torch.manual_seed(task.seed)
        config = sparsify.SparseCoderConfig(num_latents=task.d_sae, k=task.k)
        self.coder = sparsify.SparseCoder(task.d_in, config, dtype=torch.float32)
        self.trainer = sparsify.TrainConfig(sae=config)
        dead_after = task.setting.dead_after if short_run else self.trainer.dead_feature_threshold
        self.dead_after = dead_after
        self.since_fired = torch.zeros(task.d_sae, dtype=torch.int64)
        self.fresh, self.finished, self.schedule = True, False, None
        rule = (5e-3 if optimizer == "signum" else 2e-4) / (task.d_sae / 2**14) ** 0.5
        self.lr = rule * lr_factor
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
        # Sign descent has no warm-up to shorten, so only its learning rate differs.
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

    def judge(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        if not self.finished:
            self.coder.set_decoder_norm_to_unit_norm()  # as the step is about to; twice is once
        code = self.coder.encode(x)
        x_hat = self.coder.decode(code.top_acts, code.top_indices)
        return x, x_hat, Codes(code.top_acts, code.top_indices, self.task.d_sae)

    def finish(self) -> None:
        self.finished = True
        if self.schedule is None:
            self.optimizer.eval()


class DictionaryLearning(Contender):
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
            self.trainer.dead_feature_threshold = task.setting.dead_after

    @classmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        return tuned_variants() if tuned else {"default": {}}

    def step(self, acts: Tensor) -> None:
        self.trainer.update(self.done, acts * self.task.scale)
        self.done += 1

    def judge(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        dense, values, indices, _ = self.trainer.ae.encode(x, return_topk=True)
        return x, self.trainer.ae.decode(dense), Codes(values, indices, self.task.d_sae)


class SAELens(Contender):
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
                "dead_feature_window": max(1, task.setting.dead_after // task.batch),
            }
        self.lr = 3e-4 * lr_factor
        config = SAETrainerConfig(
            total_training_samples=task.steps * task.batch,
            train_batch_size_samples=task.batch,
            lr=self.lr,
            lr_end=self.lr / 10,  # unused by its constant schedule, which still asks for one
            **options,
        )
        self.trainer = SAETrainer(config, self.coder, data_provider=iter(()))

    @classmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        return tuned_variants() if tuned else {"default": {}}

    def step(self, acts: Tensor) -> None:
        self.trainer.step(acts * self.task.scale)
        self.trainer.n_training_steps += 1

    def judge(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        dense = self.coder.encode(x)
        kept = dense.topk(self.task.k, sorted=False)
        return x, self.coder.decode(dense), Codes(kept.values, kept.indices, self.task.d_sae)


def tuned_variants() -> dict[str, dict[str, Any]]:
    return {
        f"tuned (lr x {factor})": {"lr_factor": factor, "short_run": True} for factor in LR_FACTORS
    }


def quietly(call: Callable[[], Any]) -> Any:
    """What `call` returns, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call()

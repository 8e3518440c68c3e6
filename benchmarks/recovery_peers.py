"""Drive other trainers ("peers"), where installed, for `benchmarks.recovery`.

TopK runs through the classes of `benchmarks.peers`. The other rules run through the trainers of
dictionary_learning and their `update(step, acts)`: `BatchTopKTrainer`, `MatryoshkaBatchTopKTrainer`
(groups of F/16, F/16, F/8, F/4, F/2), `JumpReluTrainer` (target_l0 = k), `GatedSAETrainer` and
`StandardTrainer` (L1). The last two have no target L0, so besides the learning rates at the default
penalty they run at 4 times the default learning rate with penalties of up to 128 times the default.
All are evaluated with their `encode` after training.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.config import BenchConfig
from benchmarks.peers import LR_FACTORS, DictionaryLearning, SAELens, Sparsify, silently
from benchmarks.trainers import Task, Trainer
from sae_kernels.codes import Codes

TOPK: dict[str, type[Trainer]] = {
    "sparsify": Sparsify,
    "dictionary_learning": DictionaryLearning,
    "saelens": SAELens,
}
# For each recipe: module and class in dictionary_learning.trainers, default learning rate (None for
# a rule that depends on d_sae), name of the penalty's argument.
RULES = {
    "BatchTopK": ("batch_top_k", "BatchTopKTrainer", None, None),
    "Matryoshka BatchTopK": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", None, None),
    "JumpReLU": ("jumprelu", "JumpReluTrainer", 7e-5, None),
    "Gated": ("gdm", "GatedSAETrainer", 5e-5, "l1_penalty"),
    "L1": ("standard", "StandardTrainer", 1e-3, "l1_penalty"),
}
PENALTY = 0.1  # dictionary_learning's default
PENALTY_FACTORS = (2, 4, 8, 16, 32, 64, 128)


def distributions(trainer: str) -> list[str]:
    """Return the distributions of a peer, for the record of versions."""
    return [TOPK[trainer].distribution] if trainer in TOPK else []


def runs(recipe: str, config: BenchConfig) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Yield (peer, variant, factory) for installed peers; a factory takes a sample and a seed."""
    if recipe == "TopK":
        for name, peer in TOPK.items():
            if peer.installed():
                for variant, options in peer.variants(tuned=True).items():
                    make = lambda *args, p=peer, o=options: TopKPeer(p, config, o, *args)
                    yield name, variant, make
    elif recipe in RULES and DictionaryLearning.installed():
        *_, penalty = RULES[recipe]
        grid = [(factor, 1) for factor in LR_FACTORS]
        grid += [(4, factor) for factor in PENALTY_FACTORS] if penalty else []
        for lr, weight in grid:
            variant = f"lr x {lr}" + (f", penalty x {weight}" if penalty else "")
            make = lambda *args, o=(lr, weight): DictionaryLearningRule(recipe, config, *o, *args)
            yield "dictionary_learning", variant, make


def _task(config: BenchConfig, sample: Tensor, seed: int) -> Task:
    d_in = sample.shape[1]
    scale = d_in**0.5 / sample.double().norm(dim=1).mean().item()
    steps = config.tokens // config.data["batch_size"]
    return Task(config, d_in, steps, sample, scale, seed)


class TopKPeer:
    """A trainer of `benchmarks.quality`, with access to its decoder."""

    def __init__(
        self, peer: type[Trainer], config: BenchConfig, options: dict, sample: Tensor, seed: int
    ) -> None:
        self.trainer = peer(_task(config, sample, seed), **options)
        self.lr, self.step = self.trainer.lr, self.trainer.step
        self.predict = torch.no_grad()(self.trainer.predict)

    def decoder(self) -> Tensor:
        """Return the decoder, shape [d_sae, d_in]."""
        self.trainer.finish()
        if isinstance(self.trainer, DictionaryLearning):
            return self.trainer.trainer.ae.decoder.weight.t()
        return self.trainer.coder.W_dec


class DictionaryLearningRule:
    """A trainer of dictionary_learning for a rule other than TopK."""

    def __init__(
        self,
        recipe: str,
        config: BenchConfig,
        lr_factor: float,
        penalty_factor: float,
        sample: Tensor,
        seed: int,
    ) -> None:
        module, name, lr, penalty = RULES[recipe]
        trainers = importlib.import_module(f"dictionary_learning.trainers.{module}")
        self.task, self.done = _task(config, sample, seed), 0
        task = self.task
        self.lr = (lr or 2e-4 / (task.d_sae / 2**14) ** 0.5) * lr_factor
        options: dict[str, Any] = {"k": task.k} if lr is None else {}
        if name == "MatryoshkaBatchTopKTrainer":
            options["group_fractions"] = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
        if name == "JumpReluTrainer":
            options["target_l0"] = float(task.k)
        if penalty:
            options[penalty] = PENALTY * penalty_factor
        if lr is not None:
            options["sparsity_warmup_steps"] = task.warmup_steps
        else:
            options["threshold_start_step"] = task.steps // 2
        self.trainer = silently(
            lambda: getattr(trainers, name)(
                steps=task.steps,
                activation_dim=task.d_in,
                dict_size=task.d_sae,
                layer=0,
                lm_name="",
                lr=self.lr,
                warmup_steps=task.warmup_steps,
                decay_start=task.steps - task.decay_steps,
                seed=seed,
                device="cpu",
                **options,
            )
        )
        if hasattr(self.trainer, "dead_feature_threshold"):
            self.trainer.dead_feature_threshold = config.dead_after

    def step(self, acts: Tensor) -> None:
        self.trainer.update(self.done, acts * self.task.scale)
        self.done += 1

    @torch.no_grad()
    def predict(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        dense = self.trainer.ae.encode(x)
        rows, indices = dense.nonzero(as_tuple=True)
        offsets = torch.nn.functional.pad((dense != 0).sum(1).cumsum(0), (1, 0))
        codes = Codes(dense[rows, indices], indices, self.task.d_sae, offsets)
        return x, self.trainer.ae.decode(dense), codes

    def decoder(self) -> Tensor:
        """Return the decoder, shape [d_sae, d_in]."""
        ae = self.trainer.ae
        return ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.t()

"""How `benchmarks.recovery` drives the peers, where they are installed.

TopK by the classes of `benchmarks.peers`; the other families of dictionary_learning by its own
trainers through `update(step, acts)`: `BatchTopKTrainer`, `MatryoshkaBatchTopKTrainer` (groups of
F/16, F/16, F/8, F/4, F/2), `JumpReluTrainer` (target_l0 = k), `GatedSAETrainer` and
`StandardTrainer` (L1). The last two have no wanted L0: at 4 times the default learning rate their
penalty is up to 128 times its default, besides the learning rates at the default penalty.
Judged by what their `encode` gives after training.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.config import Setting
from benchmarks.peers import LR_FACTORS, DictionaryLearning, SAELens, Sparsify, quietly
from benchmarks.trainers import Contender, Task
from sae_kernels.codes import Codes

TOPK: dict[str, type[Contender]] = {
    "sparsify": Sparsify,
    "dictionary_learning": DictionaryLearning,
    "saelens": SAELens,
}
# Recipe -> module and class of dictionary_learning.trainers, its learning rate, its penalty's name.
FAMILIES = {
    "BatchTopK": ("batch_top_k", "BatchTopKTrainer", None, None),
    "Matryoshka BatchTopK": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", None, None),
    "JumpReLU": ("jumprelu", "JumpReluTrainer", 7e-5, None),
    "Gated": ("gdm", "GatedSAETrainer", 5e-5, "l1_penalty"),
    "L1": ("standard", "StandardTrainer", 1e-3, "l1_penalty"),
}
PENALTY = 0.1  # their default
PENALTY_FACTORS = (2, 4, 8, 16, 32, 64, 128)


def distributions(trainer: str) -> list[str]:
    return [TOPK[trainer].distribution] if trainer in TOPK else []


def runs(recipe: str, setting: Setting) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(peer, variant, how to make it from a sample and a seed) of those installed."""
    if recipe == "TopK":
        for name, peer in TOPK.items():
            if peer.installed():
                for variant, options in peer.variants(tuned=True).items():
                    make = lambda *some, p=peer, o=options: TopKPeer(p, setting, o, *some)
                    yield name, variant, make
    elif recipe in FAMILIES and DictionaryLearning.installed():
        *_, penalty = FAMILIES[recipe]
        grid = [(factor, 1) for factor in LR_FACTORS]
        grid += [(4, factor) for factor in PENALTY_FACTORS] if penalty else []
        for lr, weight in grid:
            variant = f"lr x {lr}" + (f", penalty x {weight}" if penalty else "")
            make = lambda *some, o=(lr, weight): Registered(recipe, setting, *o, *some)
            yield "dictionary_learning", variant, make


def _task(setting: Setting, sample: Tensor, seed: int) -> Task:
    d_in = sample.shape[1]
    scale = d_in**0.5 / sample.double().norm(dim=1).mean().item()
    steps = setting.tokens // setting.data["batch_size"]
    return Task(setting, d_in, steps, sample, scale, seed)


class TopKPeer:
    """A contender of `benchmarks.quality`, and where its decoder lies."""

    def __init__(
        self, peer: type[Contender], setting: Setting, options: dict, sample: Tensor, seed: int
    ) -> None:
        self.contender = peer(_task(setting, sample, seed), **options)
        self.lr, self.step = self.contender.lr, self.contender.step
        self.judge = torch.no_grad()(self.contender.judge)

    def decoder(self) -> Tensor:
        """[d_sae, d_in]."""
        self.contender.finish()
        if isinstance(self.contender, DictionaryLearning):
            return self.contender.trainer.ae.decoder.weight.t()
        return self.contender.coder.W_dec


class Registered:
    """A trainer of dictionary_learning."""

    def __init__(
        self,
        recipe: str,
        setting: Setting,
        lr_factor: float,
        penalty_factor: float,
        sample: Tensor,
        seed: int,
    ) -> None:
        module, name, lr, penalty = FAMILIES[recipe]
        trainers = importlib.import_module(f"dictionary_learning.trainers.{module}")
        self.task, self.done = _task(setting, sample, seed), 0
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
        self.trainer = quietly(
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
            self.trainer.dead_feature_threshold = setting.dead_after

    def step(self, acts: Tensor) -> None:
        self.trainer.update(self.done, acts * self.task.scale)
        self.done += 1

    @torch.no_grad()
    def judge(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        x = acts * self.task.scale
        dense = self.trainer.ae.encode(x)
        rows, indices = dense.nonzero(as_tuple=True)
        offsets = torch.nn.functional.pad((dense != 0).sum(1).cumsum(0), (1, 0))
        codes = Codes(dense[rows, indices], indices, self.task.d_sae, offsets)
        return x, self.trainer.ae.decode(dense), codes

    def decoder(self) -> Tensor:
        """[d_sae, d_in]."""
        ae = self.trainer.ae
        return ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.t()

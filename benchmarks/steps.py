"""Whole training steps: loss, backward, clipping, Adam, unit-norm decoder, counts of dead latents.

Every provider takes the same batch of normally distributed activations. TopK also has AuxK, with 5%
of the latents dead; our TopK step is `sae.training.Learner`, the step that a run takes. The other
sparsity rules are made from `sae_kernels` and the same optimizer, with biases such that about k
latents fire on a token. `dense` is the straightforward implementation: [batch, d_sae] through
autograd, and torch's fused Adam. `compiled` is its loss through torch.compile. `benchmarks.peers`
drives the other trainers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.init import unit_rows
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.training import Learner, OptimConfig
from sae.training.row_adam import RowAdam
from sae_kernels.codes import Codes
from sae_kernels.decode_error import decode_error
from sae_kernels.encode_batch_topk import encode_batch_topk
from sae_kernels.encode_gated import encode_gated
from sae_kernels.encode_threshold import encode_jumprelu, encode_threshold

RULES = ("topk", "batch_topk", "jumprelu", "gated", "l1")
DEAD_SHARE = 0.05
CLIP_NORM = 1.0
PENALTY = 1e-3
LR = 1e-4


@dataclass(frozen=True)
class Shape:
    """The size of an SAE and of its batches."""

    d_in: int
    d_sae: int
    k: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Parse text such as `288,4608,32,2048`: d_in, d_sae, k, batch."""
        return cls(*map(int, text.split(",")))

    @property
    def k_aux(self) -> int:
        """Number of dead latents that fire on a token in AuxK."""
        return max(1, self.d_in // 2)


class Step:
    """A training step for one shape. Calling it is timed, `prepare` is not."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(shape.batch, shape.d_in, generator=generator).to(device, dtype)

    def prepare(self) -> None: ...

    def __call__(self) -> None: ...

    def quantile(self) -> float:
        """Return the value that a normal variable exceeds with probability k / d_sae.

        Pre-activations of this data are normal, because the rows of W_enc have norm 1.
        """
        share = torch.tensor(self.shape.k / self.shape.d_sae, dtype=torch.float64)
        return torch.special.ndtri(1 - share).item()


class OursTopK(Step):
    """Our TopK step, `Learner.step`, with Adam's moments in bfloat16 or float32."""

    def __init__(self, *args, moments: str = "float32") -> None:
        super().__init__(*args)
        shape = self.shape
        site = Autoencoder(hook="x")
        sae = SAE(
            shape.d_in,
            TopK(d_sae=shape.d_sae, k=min(shape.k, shape.d_sae)),
            site=site,
            dtype=self.dtype,
        )
        self.learner = Learner(
            sae,
            [FVU(), AuxK()],
            OptimConfig(lr=LR, clip_norm=CLIP_NORM, moments=moments),
            total_steps=10**6,
            dead_after=10**9,
            refresh_steps=10**9,
        ).to(self.device)
        self.learner.scale = {"x": 1.0}
        self.dead = torch.arange(int(DEAD_SHARE * shape.d_sae), device=self.device)

    def prepare(self) -> None:
        self.learner.dead.dead_list = self.dead
        self.learner.dead.tokens_since_fired[self.dead] = 2 * 10**9

    def __call__(self) -> None:
        self.learner.step({"x": self.x})


class OursRule(Step):
    """Our step of another rule: its encoder, `decode_error`, a penalty and RowAdam."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        d_in, d_sae = self.shape.d_in, self.shape.d_sae
        make = lambda value: torch.nn.Parameter(
            torch.full((d_sae,), value, device=self.device, dtype=self.dtype)
        )
        rows = unit_rows(d_sae, d_in, seed=0, dtype=self.dtype).to(self.device)
        self.W_enc = torch.nn.Parameter(rows.clone().t())
        self.W_dec = torch.nn.Parameter(rows)
        self.b_dec = torch.nn.Parameter(torch.zeros(d_in, device=self.device, dtype=self.dtype))
        self.vectors = self.make_vectors(make)
        self.optimizer = RowAdam(
            [
                {"params": [self.W_enc, self.b_dec, *self.vectors]},
                {"params": [self.W_dec], "unit_norm": True},
            ],
            lr=LR,
            clip_norm=CLIP_NORM,
        )
        self.tokens_since_fired = torch.zeros(d_sae, dtype=torch.int64, device=self.device)

    def make_vectors(self, make: Callable[[float], Tensor]) -> list[Tensor]:
        """Return the rule's parameters of shape [d_sae].

        Args:
            make: Returns a parameter filled with a value.
        """
        return [make(-self.quantile())]

    def loss(self) -> tuple[Codes, Tensor]:
        """Return the codes of the batch and the loss."""
        raise NotImplementedError

    def error(self, codes: Codes) -> Tensor:
        """Return the squared error per activation."""
        return decode_error(codes, self.W_dec, self.b_dec, self.x)[1] / self.shape.batch

    def __call__(self) -> None:
        codes, loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens_since_fired += codes.batch
        self.tokens_since_fired.masked_fill_(codes.fired(), 0)


class OursBatchTopK(OursRule):
    def make_vectors(self, make: Callable[[float], Tensor]) -> list[Tensor]:
        return [make(0.0)]

    def loss(self) -> tuple[Codes, Tensor]:
        codes = encode_batch_topk(self.x, self.W_enc, *self.vectors, self.shape.k, self.b_dec)
        return codes, self.error(codes)


class OursL1(OursRule):
    def loss(self) -> tuple[Codes, Tensor]:
        codes = encode_threshold(self.x, self.W_enc, *self.vectors, self.b_dec)
        return codes, self.error(codes) + PENALTY * codes.values.sum() / self.shape.batch


class OursJumpReLU(OursRule):
    def make_vectors(self, make: Callable[[float], Tensor]) -> list[Tensor]:
        return [make(0.0), make(self.quantile())]

    def loss(self) -> tuple[Codes, Tensor]:
        b_enc, threshold = self.vectors
        codes, gates = encode_jumprelu(
            self.x, self.W_enc, b_enc, threshold, self.b_dec, bandwidth=1e-2
        )
        return codes, self.error(codes) + PENALTY * gates.sum() / self.shape.batch


class OursGated(OursRule):
    def make_vectors(self, make: Callable[[float], Tensor]) -> list[Tensor]:
        return [make(-self.quantile()), make(0.0), make(0.0)]

    def loss(self) -> tuple[Codes, Tensor]:
        codes, gates = encode_gated(self.x, self.W_enc, *self.vectors, self.b_dec)
        frozen = decode_error(gates, self.W_dec.detach(), self.b_dec.detach(), self.x)[1]
        penalty = PENALTY * gates.values.sum()
        return codes, self.error(codes) + (frozen + penalty) / self.shape.batch


class Dense(OursRule):
    """The straightforward dense step of a rule of `RULES`."""

    def __init__(self, *args, rule: str, compiled: bool) -> None:
        self.rule = rule
        super().__init__(*args)
        for weight in (self.W_enc, self.W_dec):
            del weight.row_grads
        self.optimizer = torch.optim.Adam(
            [self.W_enc, self.W_dec, self.b_dec, *self.vectors], lr=LR, fused=True
        )
        self.dense_loss = torch.compile(self.plain_loss) if compiled else self.plain_loss
        self.dead = torch.arange(int(DEAD_SHARE * self.shape.d_sae), device=self.device)

    def make_vectors(self, make: Callable[[float], Tensor]) -> list[Tensor]:
        quantile = self.quantile()
        starts = {
            "topk": [0.0],
            "batch_topk": [0.0],
            "jumprelu": [0.0, quantile],
            "gated": [-quantile, 0.0, 0.0],
            "l1": [-quantile],
        }
        return [make(value) for value in starts[self.rule]]

    def plain_loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dense activations of the latents [batch, d_sae], and the loss."""
        k, batch = self.shape.k, self.shape.batch
        product = (x - self.b_dec) @ self.W_enc
        pre = product + self.vectors[0]
        extra = 0.0
        if self.rule == "topk":
            top = pre.topk(k, dim=1)
            acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        elif self.rule == "batch_topk":
            top = pre.flatten().topk(k * batch)
            acts = torch.zeros_like(pre).flatten().scatter(0, top.indices, top.values.relu())
            acts = acts.view_as(pre)
        elif self.rule == "jumprelu":
            acts = pre * (pre > self.vectors[1])
            near = (pre - self.vectors[1]).abs() < 5e-3
            gate = (pre > self.vectors[1]).float() - near * (
                self.vectors[1] - self.vectors[1].detach()
            ) / 1e-2
            extra = PENALTY * gate.sum()
        elif self.rule == "gated":
            magnitude = (product * self.vectors[2].exp() + self.vectors[1]).relu()
            acts = (pre > 0) * magnitude
            gate = pre.relu()
            frozen = x - gate @ self.W_dec.detach() - self.b_dec.detach()
            extra = frozen.square().sum() + PENALTY * gate.sum()
        else:
            acts = pre.relu()
            extra = PENALTY * acts.sum()
        residual = x - acts @ self.W_dec - self.b_dec
        loss = (residual.square().sum() + extra) / batch
        if self.rule == "topk" and len(self.dead):
            pre_dead = pre[:, self.dead].relu()
            top = pre_dead.topk(min(self.shape.k_aux, pre_dead.shape[1]), dim=1)
            acts_dead = torch.zeros_like(pre_dead).scatter(1, top.indices, top.values)
            aux_residual = residual.detach() - acts_dead @ self.W_dec[self.dead]
            loss = loss + aux_residual.square().sum() / batch / 32
        return acts, loss

    def __call__(self) -> None:
        acts, loss = self.dense_loss(self.x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            [p for group in self.optimizer.param_groups for p in group["params"]], CLIP_NORM
        )
        with torch.no_grad():
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            self.optimizer.step()
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
            self.tokens_since_fired += len(self.x)
            self.tokens_since_fired[(acts > 0).any(0)] = 0
        self.optimizer.zero_grad()


class Peer(Step):
    """The step of another TopK trainer, driven as in `benchmarks.quality`."""

    def __init__(self, *args, name: str, options: dict) -> None:
        super().__init__(*args)
        from benchmarks import peers
        from benchmarks.config import BenchConfig
        from benchmarks.trainers import Task

        shape = self.shape
        model = {"sae": {"class_path": "TopK", "init_args": {"d_sae": shape.d_sae, "k": shape.k}}}
        config = BenchConfig(
            {"model": model, "data": {"batch_size": shape.batch}, "trainer": {"max_steps": 10**6}}
        )
        task = Task(config, shape.d_in, 10**6, self.x, scale=1.0, seed=0)
        self.trainer = getattr(peers, name)(task, **options)

    def __call__(self) -> None:
        self.trainer.step(self.x)


OURS = {
    "topk": OursTopK,
    "batch_topk": OursBatchTopK,
    "jumprelu": OursJumpReLU,
    "gated": OursGated,
    "l1": OursL1,
}
PEERS = {
    "sparsify (signum)": ("Sparsify", "sparsify", {"optimizer": "signum"}),
    "sparsify (adam)": ("Sparsify", "sparsify", {"optimizer": "adam"}),
    "dictionary_learning": ("DictionaryLearning", "dictionary_learning", {}),
    "saelens": ("SAELens", "sae_lens", {}),
}


def providers(rule: str, device: str) -> list[str]:
    """Return the providers that can take a step of this rule on this machine."""
    names = ["ours"]
    if rule == "topk":
        names.append("ours (bf16 moments)")
    names += ["dense", "compiled"]
    if rule == "topk" and device == "cpu":
        names += [
            name for name, (_, package, _) in PEERS.items() if importlib.util.find_spec(package)
        ]
    return names


def build(provider: str, rule: str, shape: Shape, device: str, dtype: torch.dtype) -> Step:
    """Set up the step of a provider."""
    args = (shape, device, dtype)
    if provider == "ours":
        return OURS[rule](*args)
    if provider == "ours (bf16 moments)":
        return OursTopK(*args, moments="bfloat16")
    if provider in ("dense", "compiled"):
        return Dense(*args, rule=rule, compiled=provider == "compiled")
    name, _, options = PEERS[provider]
    return Peer(*args, name=name, options=options)

"""Dictionaries learnt by sparse coding: codes by FISTA or on an active set, atoms by
block-coordinate descent.

Online dictionary learning (Mairal et al. 2010, "Online learning for matrix factorization and sparse
coding", algorithms 1 and 2), with an annealed penalty, replacement of atoms and restarts. Nothing
here needs gradients, or knows of autoencoders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae.errors import UserError
from sae.inference.active_set import active_set_codes
from sae.training.dictionary_learning.config import SparseCoding
from sae.training.dictionary_learning.updates import add_products, lasso_codes, sweep
from sae.training.resample import drawn
from sae.training.step import RunningMeans

# An atom with less than this share of the mean energy of codes is not needed.
IDLE = 0.02
# Of FISTA, for the codes that restarts of a fixed set are compared by.
FINAL_ITERATIONS = 300


class DictionaryLearner(nn.Module):
    """R dictionaries being learnt from the same samples, and all the state of that.

    Args:
        d_in, d_sae: width of a sample, and number of atoms.
        settings: penalties, restarts and the like; penalties in the unit of the samples.
        steps: how many there will be.
        online: whether each step brings fresh samples, so that sums over the earlier ones are kept;
            else each brings the same ones, and none are.
        seed: of the starts, and of the draws.

    Attributes:
        D [R, d_sae, d_in], rows of norm 1; b [R, d_in].
    """

    METRICS = ("samples", "squared_error", "variance", "l0", "objective")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        settings: SparseCoding,
        *,
        steps: int,
        online: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        R = settings.restarts
        self.settings, self.total_steps, self.online, self.seed = settings, steps, online, seed
        generator = torch.Generator().manual_seed(seed)
        D = torch.randn(R, d_sae, d_in, generator=generator, dtype=torch.float32)
        self.register_buffer("D", normalize(D, dim=2).to(dtype))
        self.register_buffer("b", torch.zeros(R, d_in, dtype=dtype))
        self.register_buffer("zz", torch.zeros(R, d_sae, d_sae, dtype=dtype))
        self.register_buffer("zx", torch.zeros(R, d_sae, d_in, dtype=dtype))
        self.register_buffer("z", torch.zeros(R, d_sae, dtype=dtype))
        self.register_buffer("x", torch.zeros(d_in, dtype=dtype))
        self.register_buffer("held", torch.zeros(R, dtype=torch.float64))
        self.register_buffer("replaced", torch.zeros(R, dtype=torch.int64))
        self.running_means = RunningMeans(self.METRICS)
        self.samples = 0.0  # how many the sums stand for
        self.steps = 0

    @torch.no_grad()
    def step(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Learn from samples [n, d_in]; their codes [R, n, d_sae], by the dictionaries before that.

        start: codes to begin with, 0 when left out.
        """
        s = self.settings
        x = x.to(self.D)
        z = self.codes(x, s.iterations, start=start)
        keep = (self.steps / (self.steps + 1)) ** s.forgetting if self.online else 0.0
        for total in (self.zz, self.zx, self.z, self.x):
            total *= keep
        add_products(self.zz, z)
        self.zx += z.mT @ x
        self.z += z.sum(1)
        self.x += x.sum(0)
        self.samples = keep * self.samples + len(x)
        self._note(x, z)
        self.D = sweep(self.D, self.zz, self.zx - self.z[:, :, None] * self.b[:, None])
        if s.bias:
            self.b = (self.x - (self.z[:, None] @ self.D)[:, 0]) / self.samples
        self.steps += 1
        due = s.replace_every is not None and self.steps % s.replace_every == 0
        if due and not s.holds(self.steps, self.total_steps):
            self._replace(x, z)
        return z

    def codes(self, x: Tensor, iterations: int, *, start: Tensor | None = None) -> Tensor:
        """Codes [R, n, d_sae] of x [n, d_in] at the penalty of the coming step; `iterations` of
        FISTA, where the settings do not ask for rounds."""
        s, x = self.settings, x - self.b[:, None]
        if s.rounds is None:
            return lasso_codes(
                x, self.D, self.penalty, iterations, non_negative=s.non_negative, start=start
            )
        starts = [None] * len(x) if start is None else start
        each = zip(x, self.D, starts, strict=True)
        return torch.stack(
            [active_set_codes(one, D, self.penalty, s.rounds, start=z) for one, D, z in each]
        )

    @property
    def penalty(self) -> float:
        """Of the coming step; after the last step, the last one."""
        return self.settings.penalty_at(self.steps, self.total_steps)

    def objectives(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of 1/2 |x - b - z D|^2 + penalty |z|_1, and of |x - b - z D|^2: float64 [R]."""
        error = (x - self.b[:, None] - z @ self.D).double().square().sum(2).mean(1)
        return 0.5 * error + self.penalty * z.abs().double().sum(2).mean(1), error

    def _note(self, x: Tensor, z: Tensor) -> None:
        objective, error = self.objectives(x, z)
        if self.settings.holds(self.steps, self.total_steps):
            self.held += objective
        n, best = len(x), self.best()
        self.running_means.add(
            samples=n,
            squared_error=n * error[best],
            variance=(x - x.mean(0)).double().square().sum(),
            l0=(z[best] != 0).sum().double(),
            objective=n * objective[best],
        )

    def best(self) -> int:
        """The restart with the lowest objective in the last steps; the first before those."""
        return int(self.held.argmin())

    def _replace(self, x: Tensor, z: Tensor) -> None:
        """Idle atoms, and the lesser of two alike, become residuals of samples, drawn with
        probability proportional to the square of their squared error."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        residual = x - self.b[:, None] - z @ self.D
        for r, (D, missed) in enumerate(zip(self.D, residual, strict=True)):
            energy = self.zz[r].diagonal()
            gone = self._idle(r)
            alike = D @ D.t() if self.settings.non_negative else (D @ D.t()).abs()
            one, other = (alike.triu(1) > self.settings.same).nonzero(as_tuple=True)
            gone[torch.where(energy[one] < energy[other], one, other)] = True
            atoms = gone.nonzero()[:, 0]
            if not len(atoms):
                continue
            tokens = drawn(missed.square().sum(1), len(atoms), generator)
            atoms = atoms[: len(tokens)]
            D[atoms] = normalize(missed[tokens], dim=1)
            self.zz[r, atoms] = self.zz[r, :, atoms] = 0
            self.zx[r, atoms] = self.z[r, atoms] = 0
            self.replaced[r] += len(atoms)

    def _idle(self, r: int) -> Tensor:
        """Which atoms of restart r codes hardly use: bool [d_sae]."""
        energy = self.zz[r].diagonal()
        return energy < IDLE * energy.mean()

    def pop_metrics(self) -> dict[str, float]:
        """Averages since the last call, of the best restart so far. Waits for the device."""
        sums = self.running_means.pop()
        n = max(sums["samples"], 1.0)
        return {
            "objective": sums["objective"] / n,
            "fvu": sums["squared_error"] / sums["variance"] if sums["variance"] else math.nan,
            "l0": sums["l0"] / n,
            "penalty": self.penalty,
            "dead_fraction": self._idle(self.best()).double().mean().item(),
            "replaced_atoms": float(self.replaced[self.best()]),
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "samples": self.samples}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.samples = state["steps"], state["samples"]


@dataclass(frozen=True)
class Dictionary:
    """What `learn_dictionary` found.

    Attributes:
        W_dec: [d_sae, d_in], rows of norm 1, of the restart with the lowest objective.
        b_dec: [d_in].
        penalty: the last one, in the unit of the samples.
        objectives: of every restart, float64 [R], in the unit in which E|x| = sqrt(d_in).
        restarts: W_dec of every restart [R, d_sae, d_in].
    """

    W_dec: Tensor
    b_dec: Tensor
    penalty: float
    objectives: Tensor
    restarts: Tensor


@torch.no_grad()
def learn_dictionary(
    x: Tensor,
    d_sae: int,
    settings: SparseCoding = SparseCoding(),  # noqa: B008 (frozen)
    *,
    steps: int = 600,
    seed: int = 0,
) -> Dictionary:
    """Dictionaries of a fixed set of samples x [n, d_in]: every step codes all of them, from the
    codes of the step before, and sweeps once over the atoms. `share` and `forgetting` of the
    settings mean nothing here.

    Raises UserError for samples that are all zero.
    """
    length = x.double().norm(dim=1).mean().item()
    if length == 0:
        raise UserError("all samples are zero: there is no dictionary of them")
    scale = math.sqrt(x.shape[1]) / length
    x = x * scale
    learner = DictionaryLearner(
        x.shape[1], d_sae, settings, steps=steps, online=False, seed=seed, dtype=x.dtype
    )
    z = None
    for _ in range(steps):
        z = learner.step(x, z)
    z = learner.codes(x, FINAL_ITERATIONS, start=z)
    objectives, _ = learner.objectives(x, z)
    best = int(objectives.argmin())
    return Dictionary(
        W_dec=learner.D[best],
        b_dec=learner.b[best] / scale,
        penalty=settings.penalty / scale,
        objectives=objectives,
        restarts=learner.D,
    )

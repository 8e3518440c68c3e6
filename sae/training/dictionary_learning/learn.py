"""Dictionary learning: codes by FISTA or on an active set, atoms by block-coordinate descent.

This is online dictionary learning (Mairal et al. 2010, "Online learning for matrix factorization
and sparse coding", algorithms 1 and 2), with an annealed penalty, replacement of atoms and
restarts. It uses neither gradients nor autoencoders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae.autoencoder.init import center_and_scale
from sae.errors import UserError
from sae.inference.active_set import active_set_codes
from sae.training.dictionary_learning.config import SparseCoding
from sae.training.dictionary_learning.updates import (
    add_products,
    lasso_codes,
    update_atoms,
)
from sae.training.resample import sample_tokens
from sae.training.step import RunningMeans

# An atom is idle if the energy of its codes is below this share of the mean over atoms.
IDLE_ENERGY = 0.02
# FISTA steps for the codes by which `learn_dictionary` compares restarts.
FINAL_ITERATIONS = 300


class DictionaryLearner(nn.Module):
    """R dictionaries that are learned from the same samples, with all state of the learning.

    Args:
        d_in: Width of a sample.
        d_sae: Number of atoms.
        settings: Penalties (in the unit of the samples), restarts and the like.
        steps: Number of steps of the whole run.
        online: Whether each step has new samples, so that sums include those of earlier steps. If
            False, every step has the same samples, and the sums are those of one step.
        seed: Seed of the starting dictionaries and of the samples that replace atoms.
        dtype: dtype of the dictionaries and of all sums.

    Attributes:
        D: Dictionaries [R, d_sae, d_in], rows of norm 1.
        b: Biases [R, d_in].
        zz, zx, z, x: Weighted sums over samples: z^T z [R, d_sae, d_sae], z^T x [R, d_sae, d_in],
            z [R, d_sae], x [d_in].
        held: Sum of the objectives of the final steps, float64 [R].
        replaced: Number of atoms replaced so far, int64 [R].
    """

    D: Tensor
    b: Tensor
    zz: Tensor
    zx: Tensor
    z: Tensor
    x: Tensor
    held: Tensor
    replaced: Tensor

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
        self.samples = 0.0  # weighted number of samples in the sums
        self.steps = 0

    @torch.no_grad()
    def step(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Update the dictionaries from a batch.

        Args:
            x: Samples [n, d_in].
            start: Codes to start from [R, n, d_sae]; 0 if None.

        Returns:
            Codes [R, n, d_sae] of the samples by the dictionaries before this step.
        """
        s = self.settings
        x = x.to(self.D)
        z = self.codes(x, s.iterations, start=start)
        decay = (self.steps / (self.steps + 1)) ** s.forgetting if self.online else 0.0
        for total in (self.zz, self.zx, self.z, self.x):
            total *= decay
        add_products(self.zz, z)
        self.zx += z.mT @ x
        self.z += z.sum(1)
        self.x += x.sum(0)
        self.samples = decay * self.samples + len(x)
        self._add_metrics(x, z)
        self.D = update_atoms(self.D, self.zz, self.zx - self.z[:, :, None] * self.b[:, None])
        if s.bias:
            self.b = (self.x - (self.z[:, None] @ self.D)[:, 0]) / self.samples
        self.steps += 1
        due = s.replace_every is not None and self.steps % s.replace_every == 0
        if due and not s.is_final(self.steps, self.total_steps):
            self._replace_atoms(x, z)
        return z

    def codes(self, x: Tensor, iterations: int, *, start: Tensor | None = None) -> Tensor:
        """Return the codes [R, n, d_sae] of x [n, d_in] at the penalty of the next step.

        Args:
            x: Samples [n, d_in].
            iterations: FISTA steps; not used if the settings choose the active set (`rounds`).
            start: Codes to start from [R, n, d_sae]; 0 if None.
        """
        s, x = self.settings, x - self.b[:, None]
        if s.rounds is None:
            return lasso_codes(
                x, self.D, self.penalty, iterations, non_negative=s.non_negative, start=start
            )
        starts = [None] * len(x) if start is None else start
        restarts = zip(x, self.D, starts, strict=True)
        return torch.stack(
            [active_set_codes(x_r, D, self.penalty, s.rounds, start=z) for x_r, D, z in restarts]
        )

    @property
    def penalty(self) -> float:
        """The penalty of the next step, or of the last step if there is no other."""
        return self.settings.penalty_at(self.steps, self.total_steps)

    def objectives(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of 1/2 |x - b - z D|^2 + penalty |z|_1 and of |x - b - z D|^2.

        Args:
            x: Samples [n, d_in].
            z: Their codes [R, n, d_sae].

        Returns:
            Objective and squared error of each restart, each float64 [R].
        """
        error = (x - self.b[:, None] - z @ self.D).double().square().sum(2).mean(1)
        return 0.5 * error + self.penalty * z.abs().double().sum(2).mean(1), error

    def _add_metrics(self, x: Tensor, z: Tensor) -> None:
        objective, error = self.objectives(x, z)
        if self.settings.is_final(self.steps, self.total_steps):
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
        """Return the index of the restart with the lowest objective in the final steps.

        It is 0 before the final steps.
        """
        return int(self.held.argmin())

    def _replace_atoms(self, x: Tensor, z: Tensor) -> None:
        """Replace idle atoms, and the less used of two similar ones, by residuals of samples.

        Samples are drawn with probability proportional to the square of their squared error.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        residual = x - self.b[:, None] - z @ self.D
        for r, (D, residual_r) in enumerate(zip(self.D, residual, strict=True)):
            energy = self.zz[r].diagonal()
            replaced = self._idle_atoms(r)
            similarity = D @ D.t() if self.settings.non_negative else (D @ D.t()).abs()
            first, second = (similarity.triu(1) > self.settings.same).nonzero(as_tuple=True)
            replaced[torch.where(energy[first] < energy[second], first, second)] = True
            atoms = replaced.nonzero()[:, 0]
            if not len(atoms):
                continue
            samples = sample_tokens(residual_r.square().sum(1), len(atoms), generator)
            atoms = atoms[: len(samples)]
            D[atoms] = normalize(residual_r[samples], dim=1)
            self.zz[r, atoms] = self.zz[r, :, atoms] = 0
            self.zx[r, atoms] = self.z[r, atoms] = 0
            self.replaced[r] += len(atoms)

    def _idle_atoms(self, r: int) -> Tensor:
        """Return which atoms of restart r are hardly used by codes, as bool [d_sae]."""
        energy = self.zz[r].diagonal()
        return energy < IDLE_ENERGY * energy.mean()

    def pop_metrics(self) -> dict[str, float]:
        """Return the metrics of the best restart so far, averaged since the last call.

        This waits for the device.
        """
        sums = self.running_means.pop()
        n = max(sums["samples"], 1.0)
        return {
            "objective": sums["objective"] / n,
            "fvu": sums["squared_error"] / sums["variance"] if sums["variance"] else math.nan,
            "l0": sums["l0"] / n,
            "penalty": self.penalty,
            "dead_fraction": self._idle_atoms(self.best()).double().mean().item(),
            "replaced_atoms": float(self.replaced[self.best()]),
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "samples": self.samples}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.samples = state["steps"], state["samples"]


@dataclass(frozen=True)
class Dictionary:
    """The result of `learn_dictionary`.

    Attributes:
        W_dec: Dictionary of the restart with the lowest objective [d_sae, d_in], rows of norm 1.
        b_dec: Its bias [d_in].
        penalty: Final penalty, in the unit of the samples.
        objectives: Objective of every restart, float64 [R], in the unit of `SparseCoding`.
        restarts: Dictionaries of all restarts [R, d_sae, d_in].
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
    """Learn a dictionary of a fixed set of samples.

    Every step computes codes of all samples, starting from the codes of the step before, and then
    updates each atom once.

    Args:
        x: Samples [n, d_in].
        d_sae: Number of atoms.
        settings: Settings of the learning; `share` and `forgetting` are not used.
        steps: Number of steps.
        seed: Seed of the starting dictionaries and of the samples that replace atoms.

    Raises:
        UserError: All samples are zero.
    """
    middle, scale = center_and_scale(x, center=settings.bias)
    if math.isinf(scale):
        raise UserError("all samples are zero, so there is no dictionary to learn; give other ones")
    middle = middle.to(x)
    x = (x - middle) * scale if settings.bias else x * scale
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
        b_dec=learner.b[best] / scale + middle,
        penalty=settings.penalty / scale,
        objectives=objectives,
        restarts=learner.D,
    )

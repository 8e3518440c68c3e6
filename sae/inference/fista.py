"""Lasso codes for a given dictionary by proximal gradient descent, accelerated or plain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, softshrink

from sae.inference.certificate import duality_gap
from sae.inference.problem import Problem, at_least, positive
from sae.inference.result import InferenceResult
from sae_kernels.codes import Codes


@torch.no_grad()
def fista(
    x: Tensor,
    dictionary: Tensor,
    penalty: float,
    *,
    iterations: int = 200,
    non_negative: bool = True,
    b: Tensor | None = None,
    tolerance: float = 1e-4,
    check_every: int = 20,
    lipschitz: float | None = None,
    start: Codes | None = None,
    momentum: bool = True,
) -> InferenceResult:
    """argmin over z of 1/2 |x - b - z D|^2 + penalty * |z|_1 for every row; z >= 0 unless told.

    FISTA (Beck & Teboulle 2009) with step 1 / |D|_2^2; the momentum of a row is dropped whenever it
    points uphill (O'Donoghue & Candes 2015). No gradient is recorded. An iteration is two products
    of the encoder's shape; the Gram matrix instead would pay only up to d_sae = 2 d_in (measured:
    0.7 of the time at 8 x 16, but 1.6 at 64 x 256 and 13 at 384 x 8,192).

    Args:
        x: [batch, d_in], any floating dtype; solved in float64 if x or the dictionary is float64,
            else in float32.
        dictionary: D [d_sae, d_in], for instance `W_dec`; rows need not have norm 1.
        penalty: above 0; |x|^2 and |z|_1 are sums over dimensions and latents, not means.
        iterations: the most that are spent on a row.
        non_negative: False allows negative codes (the classic lasso).
        b: [d_in], for instance `b_dec`.
        tolerance: a row is done when its duality gap is at most this share of its objective; 0
            spends all iterations.
        check_every: iterations between such checks; one check costs about one iteration.
        lipschitz: |D|_2^2 as `squared_spectral_norm` gives it, for a dictionary used many times.
        start: codes to begin with, for instance an encoder's; zeros when left out.
        momentum: False is `ista`.

    Returns:
        codes in the dtype solved in; their objective and gap, evaluated in float64.

    Raises:
        UserError: shapes that do not fit, or a setting out of range.
    """
    problem = Problem.of(x, dictionary, b)
    positive(penalty=penalty)
    at_least(iterations=iterations, check_every=check_every)
    if start is not None:
        problem.check(start)
    step = 1 / (squared_spectral_norm(problem.atoms) if lipschitz is None else lipschitz)
    descent = _Descent(problem.atoms, penalty, step, non_negative, momentum)
    return problem.solve(
        lambda y, rows: descent(y, problem.dense(start, rows), iterations, tolerance, check_every),
        penalty=penalty,
        non_negative=non_negative,
    )


def ista(x: Tensor, dictionary: Tensor, penalty: float, **settings) -> InferenceResult:
    """`fista` without momentum: proximal gradient descent, whose objective never rises.

    Takes the same settings. It needs far more iterations (Beck & Teboulle 2009: an error of 1/t
    after t of them against 1/t^2), and is what LISTA unrolls.
    """
    return fista(x, dictionary, penalty, momentum=False, **settings)


def squared_spectral_norm(dictionary: Tensor) -> float:
    """|D|_2^2, the largest eigenvalue of the smaller Gram matrix of D [d_sae, d_in].

    Exact up to rounding and rounded up: a power iteration would come from below, and a step that is
    too long diverges.
    """
    d_sae, d_in = dictionary.shape
    D = dictionary.detach().double()
    gram = D.t() @ D if d_in <= d_sae else D @ D.t()
    largest = torch.linalg.eigvalsh(gram)[-1].item()
    # A dictionary of zeros has 0 as its only answer, whatever the step.
    return max(largest * (1 + 1e-6), 1e-30)


class _Descent:
    """The iteration on dense codes. Where codes are non-negative, the penalty is one more column of
    the atoms, which reads a constant 1 beside the residual: then the product shrinks, and what is
    left to do for each number is one clamp. Numbers are written in place: at 64 x 256 both together
    halve the time of an iteration."""

    def __init__(
        self, atoms: Tensor, penalty: float, step: float, non_negative: bool, momentum: bool
    ) -> None:
        self.atoms, self.penalty, self.step = atoms, penalty, step
        self.non_negative, self.momentum = non_negative, momentum
        self.rebuilds = pad(atoms, (0, 1))  # [d_sae, d_in + 1]
        reads = pad(atoms, (0, 1), value=penalty if non_negative else 0.0)
        self.descends = reads.t() * -step  # [d_in + 1, d_sae]

    def __call__(
        self, y: Tensor, z: Tensor, iterations: int, tolerance: float, check_every: int
    ) -> tuple[Tensor, int]:
        """Dense codes [rows, d_sae] of y [rows, d_in] from z on, and the iterations of the slowest
        row."""
        solved, rows = torch.empty_like(z), torch.arange(len(y), device=y.device)
        shifted = pad(y, (0, 1), value=-1.0)
        ahead, reached, t = z.clone(), torch.empty_like(z), y.new_ones(len(y), 1)
        for spent in range(1, iterations + 1):
            error = torch.addmm(shifted, ahead, self.rebuilds, beta=-1)
            torch.addmm(ahead, error, self.descends, out=reached)
            if self.non_negative:
                reached.clamp_(min=0)
            else:
                reached = softshrink(reached, self.step * self.penalty)
            if self.momentum:
                moved = torch.sub(reached, z, out=z)
                uphill = torch.linalg.vecdot(ahead.sub_(reached), moved)[:, None] > 0
                t = torch.where(uphill, 1.0, t)
                following = 0.5 * (1 + (1 + 4 * t * t).sqrt())
                torch.addcmul(reached, moved, (t - 1) / following, out=ahead)
                t = following
            else:
                ahead.copy_(reached)
            z, reached = reached, z
            if tolerance and spent % check_every == 0 and spent < iterations:
                objective, gap = duality_gap(
                    y, z, self.atoms, self.penalty, non_negative=self.non_negative
                )
                going = gap > tolerance * objective
                if not going.all():
                    solved[rows[~going]] = z[~going]
                    kept = (rows, y, shifted, z, ahead, t)
                    rows, y, shifted, z, ahead, t = (part[going] for part in kept)
                    reached = torch.empty_like(z)
                    if not len(rows):
                        return solved, spent
        solved[rows] = z
        return solved, iterations

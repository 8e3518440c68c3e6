"""Lasso codes for a given dictionary by accelerated proximal gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.errors import UserError
from sae.inference.certificate import duality_gap
from sae.inference.result import InferenceResult, ragged_codes, sparse_rows

# Rows are solved in runs whose dense codes hold about this many numbers, so memory does not grow
# with the batch. On a CPU a run that fits the cache is twice as fast (2**20 against 2**22); a GPU
# wants its whole width busy. Below LEAST_ROWS, reading the dictionary costs more than the work.
CODES_PER_RUN = {"cpu": 2**20, "cuda": 2**26}
LEAST_ROWS = 128


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
) -> InferenceResult:
    """argmin over z of 1/2 |x - b - z D|^2 + penalty * |z|_1 for every row; z >= 0 unless told.

    FISTA (Beck & Teboulle 2009) with step 1 / |D|_2^2; the momentum of a row is dropped whenever it
    points uphill (O'Donoghue & Candes 2015). No gradient is recorded.

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

    Returns:
        codes in the dtype solved in; their objective and gap, evaluated in float64.

    Raises:
        UserError: shapes that do not fit, or a setting out of range.
    """
    if x.dim() != 2 or dictionary.dim() != 2 or x.shape[1] != dictionary.shape[1]:
        raise UserError(
            f"x {tuple(x.shape)} and dictionary {tuple(dictionary.shape)} do not fit; "
            f"give [batch, d_in] and [d_sae, d_in]"
        )
    if not penalty > 0:
        raise UserError(f"penalty={penalty} must be above 0: the certificate needs it")
    for name, value in (("iterations", iterations), ("check_every", check_every)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    dtype = torch.promote_types(torch.promote_types(x.dtype, dictionary.dtype), torch.float32)
    target = x.to(dtype) if b is None else x.to(dtype) - b.to(dtype)
    atoms, atoms64 = dictionary.to(dtype), dictionary.double()
    step = 1 / (squared_spectral_norm(atoms) if lipschitz is None else lipschitz)
    parts, certificates, spent = [], [], 0
    rows = max(LEAST_ROWS, CODES_PER_RUN.get(x.device.type, 2**20) // len(atoms))
    for y in target.split(rows):
        z, used = _solve(y, atoms, penalty, step, iterations, non_negative, tolerance, check_every)
        parts.append(sparse_rows(z))
        certificates.append(
            duality_gap(y.double(), z.double(), atoms64, penalty, non_negative=non_negative)
        )
        spent = max(spent, used)
    objective, gap = (torch.cat(part) for part in zip(*certificates, strict=True))
    return InferenceResult(ragged_codes(parts, len(atoms)), objective, gap, spent)


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


def _solve(
    y: Tensor,
    atoms: Tensor,
    penalty: float,
    step: float,
    iterations: int,
    non_negative: bool,
    tolerance: float,
    check_every: int,
) -> tuple[Tensor, int]:
    """Dense codes [batch, d_sae] of y [batch, d_in], and the iterations of the slowest row."""
    solved = y.new_zeros(len(y), len(atoms))
    rows = torch.arange(len(y), device=y.device)
    z, ahead, t = solved, solved, y.new_ones(len(y), 1)
    for spent in range(1, iterations + 1):
        gradient = (ahead @ atoms).sub_(y) @ atoms.t()
        reached = torch.sub(ahead, gradient, alpha=step)
        if non_negative:
            reached.sub_(step * penalty).clamp_(min=0)
        else:
            reached = torch.nn.functional.softshrink(reached, step * penalty)
        moved = reached - z
        uphill = torch.linalg.vecdot(ahead.sub(reached), moved)[:, None] > 0
        t = torch.where(uphill, 1.0, t)
        following = 0.5 * (1 + (1 + 4 * t * t).sqrt())
        ahead = torch.addcmul(reached, moved, (t - 1) / following)
        z, t = reached, following
        if tolerance and spent % check_every == 0 and spent < iterations:
            objective, gap = duality_gap(y, z, atoms, penalty, non_negative=non_negative)
            done = gap <= tolerance * objective
            solved[rows[done]] = z[done]
            going = ~done
            if not going.any():
                return solved, spent
            rows, y, z, ahead, t = (part[going] for part in (rows, y, z, ahead, t))
    solved[rows] = z
    return solved, iterations

"""Amortisation gap: how much better codes exist for the dictionary of an SAE.

An encoder infers codes in one pass (amortised inference). What iterative inference finds beyond it
is its amortisation gap, which no linear encoder closes (O'Neill, Gumran & Klindt, ICML 2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.inference import certify, fista, refine, refit, squared_spectral_norm
from sae_kernels.codes import Codes

PENALTY_ROWS = 128
"""Rows on which the penalty of the lasso is chosen."""
REFINE_STEPS = 16


@dataclass(frozen=True)
class AmortisationGap:
    """An SAE's codes z of activations y compared with better ones for its own dictionary D.

    Attributes:
        rows: number of activations.
        l0: active latents per row in the SAE's codes.
        fvu: FVU of the SAE's codes.
        fvu_best: FVU of the best codes found with, in every row, no more latents than the SAE's.
        penalty: lambda, for atoms of norm 1.
        l0_lasso: active latents per row of the lasso's codes z*.
        lasso_gap: (E P(z) - E P(z*)) / E|y - mean|^2, with P(z) = 1/2 |y - z D|^2 + lambda |z|_1
            and z* as FISTA found it. The true gap is at least this large.
        uncertified: upper bound on what FISTA left over, in the same unit. With the exact z* the
            gap is at least `lasso_gap` and at most `lasso_gap` + `uncertified`.
        per_row: the values behind these means, float64 [rows, 4]: squared error of the SAE's
            codes, squared error of the best codes, P(z) - P(z*), and |y - mean|^2.
    """

    rows: int
    l0: float
    fvu: float
    fvu_best: float
    penalty: float
    l0_lasso: float
    lasso_gap: float
    uncertified: float
    per_row: Tensor = field(repr=False, compare=False)

    @property
    def fvu_gap(self) -> float:
        """FVU saved at equal sparsity; a lower bound, since better codes may exist."""
        return self.fvu - self.fvu_best

    def metrics(self) -> dict[str, float | int]:
        """Return the numbers by name, without `per_row`."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "per_row"}
        return numbers | {"fvu_gap": self.fvu_gap}


@torch.no_grad()
def amortisation_gap(
    sae: SAE,
    x: Tensor,
    *,
    penalty: float | None = None,
    iterations: int = 300,
    tolerance: float = 1e-3,
) -> AmortisationGap:
    """Measure two amortisation gaps of an SAE.

    The gap at equal sparsity compares FVU. In each row the better of two codes counts: the SAE's
    latents, refined, and equally many of the lasso's latents, those that contribute most, refined.
    The gap of the lasso has a certificate, but the lasso trades some error for smaller codes.
    Dictionary rows count as if they had norm 1, and codes are multiplied by the norms.

    Args:
        sae: the SAE.
        x: activations [rows, d_in], in the unit that the SAE reads.
        penalty: lambda. By default `penalty_for_l0` of the SAE's own L0, so that z* is as sparse
            as the codes it is compared with. With a larger penalty the SAE's codes would be
            charged for being less sparse, with a smaller one for being sparser.
        iterations: see `fista`.
        tolerance: see `fista`.

    Raises:
        UserError: the SAE predicts something other than what its latents read, there are no rows
            or no variance, or no latent fires.
    """
    x, codes, sign = encode_checked(sae, x)
    norms = row_norms(sae.W_dec)
    atoms = sae.W_dec / norms[:, None]
    codes = scale_codes(codes, norms)
    l0 = codes.l0().double().mean().item()
    if penalty is None:
        penalty = penalty_for_l0(x[:PENALTY_ROWS], atoms, l0, **sign, b=sae.b_dec)
    lasso = fista(
        x,
        atoms,
        penalty,
        non_negative=sign["non_negative"],
        b=sae.b_dec,
        iterations=iterations,
        tolerance=tolerance,
    )
    assert lasso.gap is not None
    half_best = best_codes(x, atoms, sae.b_dec, codes.l0(), [codes, lasso.codes], sign)[1]
    objective = certify(x, atoms, codes, penalty, **sign, b=sae.b_dec).objective
    half_error = certify(x, atoms, codes, b=sae.b_dec).objective
    missed, variation = objective - lasso.objective, row_variation(x)
    variance = variation.mean().item()
    per_row = [2 * half_error, 2 * half_best, missed, variation]
    return AmortisationGap(
        rows=len(x),
        l0=l0,
        fvu=2 * half_error.mean().item() / variance,
        fvu_best=2 * half_best.mean().item() / variance,
        penalty=penalty,
        l0_lasso=lasso.codes.l0().double().mean().item(),
        lasso_gap=missed.mean().item() / variance,
        uncertified=lasso.gap.mean().item() / variance,
        per_row=torch.stack([column.double() for column in per_row], 1),
    )


@torch.no_grad()
def penalty_for_l0(
    x: Tensor,
    dictionary: Tensor,
    l0: float,
    *,
    non_negative: bool = True,
    b: Tensor | None = None,
    halvings: int = 8,
    iterations: int = 100,
) -> float:
    """Return the penalty at which the lasso's codes of x have `l0` latents per row, by bisection.

    The search runs on a logarithmic scale between the penalty at which nothing fires and a
    10,000th of it. After 8 halvings the penalty is known to 4%, and the L0 more closely. The lasso
    never needs more latents in a row than d_in, so an l0 above what it reaches gives the lower end.
    """
    y = x if b is None else x - b
    correlation = y @ dictionary.t()
    high = (correlation if non_negative else correlation.abs()).max().clamp(min=1e-30).item()
    low, lipschitz, codes = 1e-4 * high, squared_spectral_norm(dictionary), None
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        codes = fista(
            y,
            dictionary,
            middle,
            non_negative=non_negative,
            iterations=iterations,
            tolerance=1e-2,
            lipschitz=lipschitz,
            start=codes,
        ).codes
        if codes.l0().double().mean().item() > l0:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def encode_checked(sae: SAE, x: Tensor) -> tuple[Tensor, Codes, dict[str, bool]]:
    """Return x in the SAE's dtype, its codes, and the sign option of the solvers.

    Raises:
        UserError: see `amortisation_gap`.
    """
    if not sae.reconstructs_input:
        raise UserError(
            f"the amortisation gap needs an SAE that reconstructs what it reads, and {sae.site} "
            "predicts something else; leave the gap out"
        )
    x = x.to(sae.b_dec.dtype)
    codes = sae.encode(x)
    if not len(x) or not bool((codes.values != 0).any()) or not variance_of(x):
        raise UserError(
            f"the amortisation gap cannot be measured: on {len(x)} rows no latent fires or the "
            "activations do not vary; give other rows"
        )
    return x, codes, {"non_negative": not sae.sparsity.signed}


def best_codes(
    x: Tensor,
    atoms: Tensor,
    b: Tensor | None,
    max_l0: Tensor,
    starts: Sequence[Codes],
    sign: dict[str, bool],
) -> tuple[Codes, Tensor]:
    """Return, for each row, the best codes found from any of `starts`, and half their errors.

    Args:
        x: activations [rows, d_in].
        atoms: dictionary with rows of norm 1 [d_sae, d_in].
        b: bias [d_in] to subtract from x.
        max_l0: largest number of active latents in each row, int [rows].
        starts: codes to start from.
        sign: `non_negative` of the solvers.

    Returns:
        The codes, and half of the squared error of each row [rows].
    """
    results = []
    for start in starts:
        fitted = refit(x, atoms, start, max_l0, **sign, b=b).codes
        results.append(refine(x, atoms, fitted, REFINE_STEPS, **sign, b=b))
    errors, winner = torch.stack([result.objective for result in results]).min(0)
    rows = [result.codes.by_latent().token_of_slot for result in results]
    wins = [winner[row] == number for number, row in enumerate(rows)]
    row, values, indices = (
        torch.cat([part[win] for part, win in zip(parts, wins, strict=True)])
        for parts in (rows, [r.codes.values for r in results], [r.codes.indices for r in results])
    )
    order = row.argsort(stable=True)
    offsets = torch.nn.functional.pad(row.bincount(minlength=len(x)).cumsum(0), (1, 0))
    return Codes(values[order], indices[order], len(atoms), offsets), errors


def row_norms(dictionary: Tensor) -> Tensor:
    """Return the norm of each row [d_sae]; 1 for a row of zeros."""
    norms = dictionary.norm(dim=1)
    return torch.where(norms > 0, norms, 1)


def scale_codes(codes: Codes, norms: Tensor) -> Codes:
    """Return the codes with each latent's values multiplied by its entry of `norms` [d_sae]."""
    return replace(codes, values=codes.values * norms[codes.indices])


def variance_of(x: Tensor) -> float:
    """Return E|x - mean|^2."""
    return row_variation(x).mean().item()


def row_variation(x: Tensor) -> Tensor:
    """Return |x - mean|^2 of each row, float64 [rows]."""
    x = x.double()
    return (x - x.mean(0)).square().sum(1)

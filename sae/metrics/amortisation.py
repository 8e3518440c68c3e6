"""How much better the codes of an SAE could be: at its own dictionary, and at the true one.

An encoder is one pass (amortised inference). What iterative inference finds beyond it is its
amortisation gap, which no linear encoder closes (O'Neill, Gumran & Klindt, ICML 2025).
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
from sae.metrics.code_matching import CodeMatching, match_codes_absolute, match_codes_signed
from sae_kernels.codes import Codes

PENALTY_ROWS = 128
REFINE_STEPS = 16


@dataclass(frozen=True)
class AmortisationGap:
    """Of an SAE's codes z on rows y, against better ones at its own dictionary D.

    Attributes:
        rows: how many.
        l0: latents per row, of the SAE.
        fvu: of the SAE's codes.
        fvu_best: of the best codes found with, in every row, no more latents than the SAE's.
        penalty: lambda, for atoms of norm 1.
        l0_lasso: latents per row of z* below.
        lasso_gap: (E P(z) - E P(z*)) / E|y - mean|^2, with P(z) = 1/2 |y - z D|^2 + lambda |z|_1
            and z* as FISTA found it: what is missing for certain.
        uncertified: what FISTA may have left over, in the same unit. With the exact z* the gap is
            at least `lasso_gap`, and at most `lasso_gap` + `uncertified`.
        of_rows: float64 [rows, 4], what the means above are of: squared errors of the SAE's codes
            and of the best, P(z) - P(z*), and |y - mean|^2.
    """

    rows: int
    l0: float
    fvu: float
    fvu_best: float
    penalty: float
    l0_lasso: float
    lasso_gap: float
    uncertified: float
    of_rows: Tensor = field(repr=False, compare=False)

    @property
    def fvu_gap(self) -> float:
        """The gap at equal sparsity, in FVU: at least this, since better codes may exist."""
        return self.fvu - self.fvu_best

    def figures(self) -> dict[str, float | int]:
        """All but `of_rows`, by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "of_rows"}
        return own | {"fvu_gap": self.fvu_gap}


@torch.no_grad()
def amortisation_gap(
    sae: SAE,
    x: Tensor,
    *,
    penalty: float | None = None,
    iterations: int = 300,
    tolerance: float = 1e-3,
) -> AmortisationGap:
    """Two gaps of any SAE on any activations x [rows, d_in], in the unit that the SAE reads.

    At equal sparsity: in each row the better of two, the SAE's latents, refined, and as many of the
    lasso's, those that write most, refined. With a certificate: the lasso, whose optimum gives up
    some error for smaller codes. D counts as if its rows had norm 1, codes as multiplied by them.

    Args:
        penalty: lambda. Left out, it is `penalty_for_l0` of the SAE's own L0, so that z* is as
            sparse as the codes it is held against: at a larger one the SAE's codes would be charged
            for being less sparse, at a smaller one for not being denser.
        iterations, tolerance: of `fista`.

    Raises:
        UserError: the SAE predicts something else than its latents read, there are no rows or no
            variance, or no latent fires on them.
    """
    x, codes, sign = _own_codes(sae, x)
    norms = _norms(sae.W_dec)
    atoms = sae.W_dec / norms[:, None]
    codes = _scaled(codes, norms)
    l0 = codes.l0().double().mean().item()
    if penalty is None:
        penalty = penalty_for_l0(x[:PENALTY_ROWS], atoms, l0, **sign, b=sae.b_dec)
    lasso = fista(
        x, atoms, penalty, **sign, b=sae.b_dec, iterations=iterations, tolerance=tolerance
    )
    best = _best(x, atoms, sae.b_dec, codes.l0(), [codes, lasso.codes], sign)[1]
    own = certify(x, atoms, codes, penalty, **sign, b=sae.b_dec)
    error = certify(x, atoms, codes, b=sae.b_dec).objective
    missed, spread = own.objective - lasso.objective, _spread(x)
    variance = spread.mean().item()
    return AmortisationGap(
        rows=len(x),
        l0=l0,
        fvu=2 * error.mean().item() / variance,
        fvu_best=2 * best.mean().item() / variance,
        penalty=penalty,
        l0_lasso=lasso.codes.l0().double().mean().item(),
        lasso_gap=missed.mean().item() / variance,
        uncertified=lasso.gap.mean().item() / variance,
        of_rows=torch.stack([part.double() for part in (2 * error, 2 * best, missed, spread)], 1),
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
    """The penalty at which the lasso's codes of x have `l0` latents per row, by bisection.

    Between the penalty at which nothing fires and a 10,000th of it, on a logarithmic scale: after 8
    halvings it is known to 4%, and the L0 to less. The lasso never needs more latents in a row than
    d_in, so an l0 above what it reaches gives the lower end.
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


@dataclass(frozen=True)
class InferenceOrDictionary:
    """Whose fault it is that codes are not the true ones: {learned, true} dictionary x {the SAE's
    own, the best found} codes, each with as many latents in a row as the SAE's.

    Attributes:
        own, best: how codes for the learned dictionary match the true codes.
        true: how the best codes found for the true dictionary do.
        fvu_own, fvu_best, fvu_true: of the same three.
        fvu_own_at_truth: of the SAE's own codes, with the true feature in the place of each matched
            latent; what no feature is matched with writes nothing.

    Code MCC is Hungarian, over active features, on signed Pearson, or on absolute where true codes
    are negative.
    """

    own: CodeMatching = field(repr=False, compare=False)
    best: CodeMatching = field(repr=False, compare=False)
    true: CodeMatching = field(repr=False, compare=False)
    fvu_own: float
    fvu_best: float
    fvu_true: float
    fvu_own_at_truth: float

    @property
    def code_mcc_own(self) -> float:
        return self.own.mean()

    @property
    def code_mcc_best(self) -> float:
        return self.best.mean()

    @property
    def code_mcc_true(self) -> float:
        return self.true.mean()

    @property
    def inference_share(self) -> float:
        """Code MCC that better inference alone wins."""
        return self.code_mcc_best - self.code_mcc_own

    @property
    def dictionary_share(self) -> float:
        """Code MCC that the true dictionary wins beyond that."""
        return self.code_mcc_true - self.code_mcc_best

    @property
    def rest(self) -> float:
        """Code MCC that neither wins: k, or a world in which codes cannot be told."""
        return 1 - self.code_mcc_true

    def figures(self) -> dict[str, float]:
        matched = ("code_mcc_own", "code_mcc_best", "code_mcc_true")
        errors = ("fvu_own", "fvu_best", "fvu_true", "fvu_own_at_truth")
        shares = ("inference_share", "dictionary_share", "rest")
        return {name: getattr(self, name) for name in (*matched, *errors, *shares)}


@torch.no_grad()
def inference_or_dictionary(
    sae: SAE, x: Tensor, z: Tensor | Codes, truth: Tensor, *, bias: Tensor | None = None
) -> InferenceOrDictionary:
    """The 2 x 2 of an SAE on rows x [rows, d_in] = z truth + bias of a known world.

    z [rows, features] and truth [features, d_in], in the unit that the SAE reads. The best codes
    are those of `amortisation_gap`. Raises UserError as that does.
    """
    x, codes, sign = _own_codes(sae, x)
    values = z.values if isinstance(z, Codes) else z
    signed_truth = bool((values < 0).any())
    match = match_codes_absolute if signed_truth else match_codes_signed
    truth = truth.to(x)
    room, variance = codes.l0(), _variance(x)
    fvu = lambda half_errors: 2 * half_errors.mean().item() / variance

    def best(atoms: Tensor, b: Tensor | None, start: Codes, sign: dict) -> tuple[Codes, Tensor]:
        l0 = room.double().mean().item()
        penalty = penalty_for_l0(x[:PENALTY_ROWS], atoms, l0, **sign, b=b)
        lasso = fista(x, atoms, penalty, **sign, b=b, iterations=300, tolerance=1e-3).codes
        return _best(x, atoms, b, room, [start, lasso], sign)

    norms = _norms(sae.W_dec)
    codes = _scaled(codes, norms)
    atoms, true_atoms = sae.W_dec / norms[:, None], truth / _norms(truth)[:, None]
    learned, learned_error = best(atoms, sae.b_dec, codes, sign)
    matching = match(z, codes)
    at_truth = _at_truth(codes, atoms, true_atoms, matching)
    true, true_error = best(true_atoms, bias, at_truth, {"non_negative": not signed_truth})
    return InferenceOrDictionary(
        own=matching,
        best=match(z, learned),
        true=match(z, true),
        fvu_own=fvu(certify(x, atoms, codes, b=sae.b_dec).objective),
        fvu_best=fvu(learned_error),
        fvu_true=fvu(true_error),
        fvu_own_at_truth=fvu(certify(x, true_atoms, at_truth, b=bias).objective),
    )


def _at_truth(codes: Codes, atoms: Tensor, truth: Tensor, matching: CodeMatching) -> Codes:
    """The codes with each latent's feature in its place, and no code where it has none. A latent
    that points against its feature has its sign turned."""
    matched = matching.latents >= 0
    latents, features = (t[matched].to(atoms.device) for t in (matching.latents, matching.features))
    feature_of = codes.indices.new_zeros(codes.d_sae)
    feature_of[latents] = features
    sign_of = atoms.new_zeros(codes.d_sae)
    along = torch.linalg.vecdot(atoms[latents], truth[features])
    sign_of[latents] = torch.where(along < 0, -1.0, 1.0).to(atoms)
    indices, values = feature_of[codes.indices], codes.values * sign_of[codes.indices]
    return Codes(values, indices, len(truth), codes.offsets)


def _own_codes(sae: SAE, x: Tensor) -> tuple[Tensor, Codes, dict[str, bool]]:
    """x in the SAE's dtype, its codes, and what inference must know of their sign."""
    if not sae.reconstructs_input:
        raise UserError(
            f"the amortisation gap needs a dictionary of what is read, and {sae.site} predicts "
            "something else than each latent reads; leave it out"
        )
    x = x.to(sae.b_dec.dtype)
    codes = sae.encode(x)
    if not len(x) or not bool((codes.values != 0).any()) or not _variance(x):
        raise UserError(
            f"the amortisation gap is of nothing: on {len(x)} rows no latent fires, or they do not "
            "vary; give other rows"
        )
    return x, codes, {"non_negative": not sae.sparsity.signed}


def _best(
    x: Tensor,
    atoms: Tensor,
    b: Tensor | None,
    room: Tensor,
    starts: Sequence[Codes],
    sign: dict[str, bool],
) -> tuple[Codes, Tensor]:
    """Of each row the best codes that are found from any of `starts` with at most `room` [rows]
    latents, and half their squared errors [rows]."""
    found = []
    for start in starts:
        fitted = refit(x, atoms, start, room, **sign, b=b).codes
        found.append(refine(x, atoms, fitted, REFINE_STEPS, **sign, b=b))
    errors, winner = torch.stack([result.objective for result in found]).min(0)
    rows = [result.codes.by_latent().token_of_slot for result in found]
    wins = [winner[row] == number for number, row in enumerate(rows)]
    row, values, indices = (
        torch.cat([part[win] for part, win in zip(parts, wins, strict=True)])
        for parts in (rows, [r.codes.values for r in found], [r.codes.indices for r in found])
    )
    order = row.argsort(stable=True)
    offsets = torch.nn.functional.pad(row.bincount(minlength=len(x)).cumsum(0), (1, 0))
    return Codes(values[order], indices[order], len(atoms), offsets), errors


def _norms(dictionary: Tensor) -> Tensor:
    """[d_sae], 1 where a row is zero."""
    norms = dictionary.norm(dim=1)
    return torch.where(norms > 0, norms, 1)


def _scaled(codes: Codes, norms: Tensor) -> Codes:
    return replace(codes, values=codes.values * norms[codes.indices])


def _variance(x: Tensor) -> float:
    """E|x - mean|^2."""
    return _spread(x).mean().item()


def _spread(x: Tensor) -> Tensor:
    """|x - mean|^2 of each row, float64."""
    x = x.double()
    return (x - x.mean(0)).square().sum(1)

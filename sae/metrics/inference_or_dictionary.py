"""Attribution of wrong codes to inference or to the dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.inference import certify, fista
from sae.metrics.amortisation import (
    PENALTY_ROWS,
    best_codes,
    encode_checked,
    penalty_for_l0,
    row_norms,
    scale_codes,
    variance_of,
)
from sae.metrics.code_matching import CodeMatching, match_codes_absolute, match_codes_signed
from sae_kernels.codes import Codes


@dataclass(frozen=True)
class InferenceOrDictionary:
    """Code MCC and FVU for {learned, true} dictionary x {the SAE's own, the best found} codes.

    All codes have as many active latents in each row as the SAE's. Code MCC is over active true
    features, matched one to one (Hungarian) by signed Pearson correlation, or by its absolute value
    where true codes are negative.

    Attributes:
        own: matching of the SAE's own codes with the true codes.
        best: matching of the best codes found for the learned dictionary.
        true: matching of the best codes found for the true dictionary.
        fvu_own: FVU of the SAE's own codes.
        fvu_best: FVU of the best codes found for the learned dictionary.
        fvu_true: FVU of the best codes found for the true dictionary.
        fvu_own_at_truth: FVU of the SAE's own codes with the direction of each matched latent
            replaced by its true feature; unmatched latents contribute nothing.
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
        """Code MCC of the SAE's own codes."""
        return self.own.mean()

    @property
    def code_mcc_best(self) -> float:
        """Code MCC of the best codes found for the learned dictionary."""
        return self.best.mean()

    @property
    def code_mcc_true(self) -> float:
        """Code MCC of the best codes found for the true dictionary."""
        return self.true.mean()

    @property
    def inference_share(self) -> float:
        """Code MCC that better inference with the learned dictionary adds."""
        return self.code_mcc_best - self.code_mcc_own

    @property
    def dictionary_share(self) -> float:
        """Code MCC that the true dictionary adds beyond that."""
        return self.code_mcc_true - self.code_mcc_best

    @property
    def rest(self) -> float:
        """Code MCC that neither adds: k is wrong, or the codes cannot be identified."""
        return 1 - self.code_mcc_true

    def metrics(self) -> dict[str, float]:
        """Return the numbers by name."""
        names = ("code_mcc_own", "code_mcc_best", "code_mcc_true")
        names += ("fvu_own", "fvu_best", "fvu_true", "fvu_own_at_truth")
        names += ("inference_share", "dictionary_share", "rest")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def inference_or_dictionary(
    sae: SAE, x: Tensor, z: Tensor | Codes, truth: Tensor, *, bias: Tensor | None = None
) -> InferenceOrDictionary:
    """Compare the SAE's codes with the best codes for the learned and for the true dictionary.

    Args:
        sae: the SAE.
        x: activations [rows, d_in] = z truth + bias, in the unit that the SAE reads.
        z: true codes [rows, features].
        truth: true directions [features, d_in].
        bias: [d_in]; 0 by default.

    Raises:
        UserError: see `sae.metrics.amortisation.amortisation_gap`, which finds the best codes in
            the same way.
    """
    x, codes, sign = encode_checked(sae, x)
    values = z.values if isinstance(z, Codes) else z
    signed_truth = bool((values < 0).any())
    match = match_codes_absolute if signed_truth else match_codes_signed
    truth = truth.to(x)
    max_l0, variance = codes.l0(), variance_of(x)
    fvu = lambda half_errors: 2 * half_errors.mean().item() / variance

    def best(atoms: Tensor, b: Tensor | None, start: Codes, sign: dict) -> tuple[Codes, Tensor]:
        l0 = max_l0.double().mean().item()
        penalty = penalty_for_l0(x[:PENALTY_ROWS], atoms, l0, **sign, b=b)
        lasso = fista(x, atoms, penalty, **sign, b=b, iterations=300, tolerance=1e-3).codes
        return best_codes(x, atoms, b, max_l0, [start, lasso], sign)

    norms = row_norms(sae.W_dec)
    codes = scale_codes(codes, norms)
    atoms, true_atoms = sae.W_dec / norms[:, None], truth / row_norms(truth)[:, None]
    learned, learned_error = best(atoms, sae.b_dec, codes, sign)
    matching = match(z, codes)
    at_truth = _replace_latents_by_features(codes, atoms, true_atoms, matching)
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


def _replace_latents_by_features(
    codes: Codes, atoms: Tensor, truth: Tensor, matching: CodeMatching
) -> Codes:
    """Return codes over true features, with each latent's value at the feature matched to it.

    Unmatched latents are dropped. The value of a latent that points against its feature changes
    its sign.
    """
    matched = matching.latents >= 0
    latents, features = (t[matched].to(atoms.device) for t in (matching.latents, matching.features))
    feature_of = codes.indices.new_zeros(codes.d_sae)
    feature_of[latents] = features
    sign_of = atoms.new_zeros(codes.d_sae)
    along = torch.linalg.vecdot(atoms[latents], truth[features])
    sign_of[latents] = torch.where(along < 0, -1.0, 1.0).to(atoms)
    indices, values = feature_of[codes.indices], codes.values * sign_of[codes.indices]
    return Codes(values, indices, len(truth), codes.offsets)

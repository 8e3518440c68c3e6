"""Amortisation gap against values worked out by hand, and its split on known faults."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import SAE, UserError
from sae.autoencoder.sites import Transcoder
from sae.autoencoder.sparsity import AbsTopK, ReLU, TopK
from sae.inference import fista
from sae.metrics.amortisation import amortisation_gap, penalty_for_l0
from sae.metrics.code_matching import match_codes_signed
from sae.metrics.inference_or_dictionary import inference_or_dictionary
from sae.metrics.measurements.amortisation import spread_rows


def sae_of(W_dec: Tensor, k: int, *, W_enc: Tensor | None = None, rule=None, b=None) -> SAE:
    d_sae, d_in = W_dec.shape
    sae = SAE(d_in, rule or TopK(d_sae=d_sae, k=k), dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_(W_dec.t() if W_enc is None else W_enc)
        sae.b_dec.copy_(torch.zeros(d_in) if b is None else b)
    return sae


def known(rows: int, features: int, d_in: int, active: int, seed: int = 0):
    """Return codes with `active` features per row, values in [0.5, 1.5], and a dictionary."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(rows, features, generator=generator).argsort(1).argsort(1) < active
    z = z * (0.5 + torch.rand(rows, features, generator=generator, dtype=torch.float64))
    W = torch.randn(features, d_in, generator=generator, dtype=torch.float64)
    return z, torch.nn.functional.normalize(W, dim=1)


def test_gap_equals_values_worked_out_by_hand():
    """Use two orthogonal atoms and an encoder that gives half of the right values."""
    eye = torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    gap = amortisation_gap(
        sae_of(eye, 2, W_enc=0.5 * eye), x, penalty=0.25, iterations=2000, tolerance=1e-12
    )
    variance = (2 + 2) / 3  # columns (3, 1, 2) and (1, 2, 3) have mean 2
    square, total = (10 + 5 + 13) / 3, (4 + 3 + 5) / 3
    objective = 0.5 * square / 4 + 0.25 * total / 2
    best = 0.25 * total - 0.25**2  # an entry y costs lambda y - lambda^2 / 2
    assert gap.lasso_gap == pytest.approx((objective - best) / variance, abs=1e-9)
    assert gap.uncertified < 1e-9
    assert gap.fvu == pytest.approx(square / 4 / variance)
    assert gap.fvu_best == pytest.approx(0, abs=1e-12)
    assert gap.fvu_gap == pytest.approx(gap.fvu)
    assert (gap.rows, gap.l0, gap.l0_lasso, gap.penalty) == (3, 2, 2, 0.25)
    assert gap.metrics()["fvu_gap"] == gap.fvu_gap
    # Per row: the error is |y|^2 / 4, the best error 0, the gap of the lasso objective
    # lambda^2 - lambda |y|_1 / 2 + |y|^2 / 8, and the variation is measured from the mean (2, 2).
    error, best_error, missed, variation = gap.per_row.T.tolist()
    assert error == pytest.approx([10 / 4, 5 / 4, 13 / 4]) and best_error == pytest.approx([0] * 3)
    lasso = [0.0625 - total / 8 + square / 8 for total, square in ((4, 10), (3, 5), (5, 13))]
    assert missed == pytest.approx(lasso, abs=1e-9) and variation == pytest.approx([2, 1, 1])
    assert "per_row" not in gap.metrics()


def test_gap_does_not_depend_on_norms_units_or_bias():
    z, W = known(60, 24, 10, 3)
    x = z @ W
    expected = amortisation_gap(sae_of(W, 3), x)
    assert expected.fvu_gap > 0.05 and expected.lasso_gap > 0.05
    folded = sae_of(W, 3).fold_scale(0.01)
    b = torch.linspace(-1, 1, 10, dtype=torch.float64)
    for sae, acts in ((folded, 100 * x), (sae_of(W, 3, b=b), x + b)):
        other = amortisation_gap(sae, acts)
        for name in ("l0", "fvu", "fvu_best", "l0_lasso", "lasso_gap"):
            assert getattr(other, name) == pytest.approx(getattr(expected, name), rel=1e-3), name
    longer = sae_of(2 * W, 3, W_enc=W.t())
    halved = sae_of(W, 3, W_enc=2 * W.t())
    assert amortisation_gap(longer, x).metrics() == pytest.approx(
        amortisation_gap(halved, x).metrics(), rel=1e-6
    )


def test_exact_gap_lies_within_the_certificate():
    z, W = known(80, 32, 10, 3)
    sae, x = sae_of(W, 3), z @ W
    exact = amortisation_gap(sae, x, penalty=0.05, iterations=20_000, tolerance=1e-10)
    rough = amortisation_gap(sae, x, penalty=0.05, iterations=10, tolerance=0)
    assert exact.uncertified < 1e-8 < 1e-4 < rough.uncertified
    assert rough.lasso_gap < exact.lasso_gap <= rough.lasso_gap + rough.uncertified


def test_best_codes_keep_sparsity_and_recover_the_truth():
    z, W = known(200, 48, 24, 3)
    gap = amortisation_gap(sae_of(W, 3), z @ W)
    assert gap.l0 == 3 and gap.fvu > 0.2
    assert gap.fvu_best < 0.01
    rule = ReLU(d_sae=48)  # L0 varies from row to row
    sae = sae_of(W, 3, rule=rule)
    with torch.no_grad():
        sae.b_enc.fill_(-0.6)
    gap = amortisation_gap(sae, z @ W)
    assert 0.001 < gap.fvu_best < 0.9 * gap.fvu


def test_gap_of_signed_codes():
    z, W = known(100, 48, 24, 3)
    z = torch.where(torch.arange(48) % 2 == 0, -z, z)
    sae = sae_of(W, 3, rule=AbsTopK(d_sae=48, k=3))
    gap = amortisation_gap(sae, z @ W)
    assert gap.fvu_best < 0.02 < 0.2 < gap.fvu
    split = inference_or_dictionary(sae, z @ W, z, W)
    assert split.code_mcc_best > 0.98 and split.code_mcc_true > 0.98
    flipped = torch.where(torch.arange(48)[:, None] % 3 == 0, -W, W)  # every third row negated
    flipped_sae = sae_of(flipped, 3, rule=AbsTopK(d_sae=48, k=3))
    at_truth = inference_or_dictionary(flipped_sae, z @ W, z, W).fvu_own_at_truth
    assert at_truth == pytest.approx(split.fvu_own)
    assert split.fvu_own_at_truth == pytest.approx(split.fvu_own)


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
@pytest.mark.parametrize("l0", [1.5, 5.0])
def test_penalty_gives_the_target_l0(l0, non_negative):
    z, W = known(100, 64, 16, 4)
    b = torch.linspace(-1, 1, 16, dtype=torch.float64)
    x = z @ W + b
    penalty = penalty_for_l0(x, W, l0, non_negative=non_negative, b=b)
    codes = fista(x, W, penalty, non_negative=non_negative, b=b, iterations=5000, tolerance=1e-8)
    assert codes.codes.l0().double().mean().item() == pytest.approx(l0, rel=0.1)


def test_penalty_for_an_l0_beyond_the_lasso_is_the_lower_end():
    z, W = known(40, 64, 8, 4)
    x = z @ W
    assert penalty_for_l0(x, W, 60.0) == pytest.approx(1e-4 * (x @ W.t()).max().item(), rel=0.03)


def test_split_blames_inference_if_the_dictionary_is_right():
    z, W = known(400, 48, 24, 3)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    split = inference_or_dictionary(sae_of(W[order], 3), z @ W, z, W)
    assert split.code_mcc_own < 0.9 < 0.99 < split.code_mcc_best
    assert split.inference_share > 0.1 and abs(split.dictionary_share) < 0.01
    assert split.fvu_own_at_truth == pytest.approx(split.fvu_own)
    assert split.fvu_best == pytest.approx(split.fvu_true, abs=5e-3)
    metrics = split.metrics()
    shares = metrics["inference_share"] + metrics["dictionary_share"] + metrics["rest"]
    assert metrics["code_mcc_own"] + shares == pytest.approx(1)


def test_split_blames_the_dictionary_if_it_is_wrong():
    z, W = known(400, 24, 16, 2)
    b = torch.linspace(-1, 1, 16, dtype=torch.float64)
    _, other = known(1, 24, 16, 1, seed=5)
    wrong = torch.nn.functional.normalize(W + 0.6 * other, dim=1)
    wrong[20:] = other[:4]  # these latents match no feature
    sae = sae_of(2 * wrong, 2, W_enc=0.5 * wrong.t(), b=b)
    x = z @ W + b
    split = inference_or_dictionary(sae, x, z, W, bias=b)
    assert split.dictionary_share > 0.1
    assert split.code_mcc_true > 0.99 and split.fvu_true < 0.01 < split.fvu_best < split.fvu_own
    codes = 2 * sae.encode(x).to_dense()
    matching = match_codes_signed(z, codes)
    moved = torch.zeros_like(z)
    for feature, latent in zip(matching.features, matching.latents, strict=True):
        moved[:, feature] = codes[:, latent] if latent >= 0 else 0
    error = (x - b - moved @ W).square().sum() / (x - x.mean(0)).square().sum()
    assert split.fvu_own_at_truth == pytest.approx(error.item())


def test_gap_refuses_unusable_input():
    z, W = known(20, 12, 6, 2)
    site = Transcoder(read="a", predict="b").bind({"a": 6, "b": 6})
    with pytest.raises(UserError, match="a -> b predicts something else"):
        amortisation_gap(SAE(6, TopK(d_sae=12, k=2), site=site), z @ W)
    with pytest.raises(UserError, match="0 rows"):
        amortisation_gap(sae_of(W, 2), (z @ W)[:0])
    with pytest.raises(UserError, match="no latent fires"):
        amortisation_gap(sae_of(W, 2, W_enc=0 * W.t()), z @ W)


def test_rows_of_the_gap_are_spread_over_all_activations():
    rows = torch.arange(16_384)[spread_rows(2048, 16_384)]
    assert len(rows) == 1024 and rows[:3].tolist() == [0, 16, 32] and rows[-1] == 16_368
    assert len(torch.arange(1000)[spread_rows(2048, 1000)]) == 1000
    assert len(torch.arange(1500)[spread_rows(2048, 1500)]) == 1024
    assert len(torch.arange(0)[spread_rows(2048, 0)]) == 0

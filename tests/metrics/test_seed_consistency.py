"""Agreement between seeds against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from sae.errors import UserError
from sae.metrics.seed_consistency import (
    agreement,
    by_frequency,
    match_seeds_signed,
    pw_mcc_signed,
    pw_mcc_signed_chance,
    shared_fraction_signed,
)

# Three decoders of two latents in the plane. B has the latents of A rotated by the angle of a 3-4-5
# triangle and swapped. C has the first latent of A and the negative of its second.
A = torch.tensor([[1.0, 0], [0, 1]])
B = torch.tensor([[-0.8, 0.6], [3.0, 4.0]]) / torch.tensor([[1.0], [5.0]])
C = torch.tensor([[2.0, 0], [0, -1]])


def test_pw_mcc_equals_value_worked_out_by_hand():
    # The unit rows of B are (-.8, .6) and (.6, .8). Sums of cosines with A: -.8 + .8 = 0 for the
    # matching in order, and .6 + .6 = 1.2 for the crossed one.
    assert pw_mcc_signed([A, B]) == pytest.approx(0.6)
    # A and C: 1 - 1 = 0 in order, 0 + 0 = 0 crossed.
    # B and C: -.8 - .8 in order, -.6 + .6 = 0 crossed.
    assert pw_mcc_signed([A, C]) == pytest.approx(0)
    assert pw_mcc_signed([B, C]) == pytest.approx(0)
    assert pw_mcc_signed([A, B, C]) == pytest.approx(0.6 / 3)
    matching = match_seeds_signed([A, B, A.flip(0)])
    assert matching.partners.tolist() == [
        [[0, 1], [1, 0], [1, 0]],
        [[1, 0], [0, 1], [0, 1]],
        [[1, 0], [0, 1], [0, 1]],
    ]
    assert matching.matched[1].tolist() == pytest.approx(
        torch.tensor([[0.6] * 2, [1] * 2, [0.6] * 2])
    )
    assert matching.stability()[0].tolist() == pytest.approx([0.8, 0.8])
    assert matching.stability()[1].tolist() == pytest.approx([0.6, 0.6])


def test_partners_of_three_latents_are_inverse_to_each_other():
    eye = torch.eye(3)
    matching = match_seeds_signed([eye, eye[[1, 2, 0]]])
    assert matching.partners[0, 1].tolist() == [
        2,
        0,
        1,
    ]  # row 0 is row 2 of the other seed
    assert matching.partners[1, 0].tolist() == [1, 2, 0]
    W = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8], [0.1, 0, 1.0]])
    matching = match_seeds_signed([eye, W[[2, 0, 1]]])
    expected = [1, 0.6, 1 / 1.01**0.5]
    assert matching.partners[0, 1].tolist() == [1, 2, 0]
    assert matching.matched[0, 1].tolist() == pytest.approx(expected, abs=1e-6)
    assert matching.matched[1, 0].tolist() == pytest.approx(
        [expected[i] for i in (2, 0, 1)], abs=1e-6
    )


@pytest.mark.parametrize(("d_sae", "d_in", "known"), [(32, 16, 0.466), (16, 8, 0.519)])
def test_chance_level(d_sae, d_in, known):
    levels = [pw_mcc_signed_chance(d_sae, d_in, seed=seed) for seed in range(10)]
    assert sum(levels) / 10 == pytest.approx(known, abs=0.02)
    assert levels[0] == pw_mcc_signed_chance(d_sae, d_in, seed=0)
    assert pw_mcc_signed_chance(d_sae, d_in, seeds=3) != levels[0]


def test_latents_are_shared_only_if_encoder_and_decoder_agree():
    decoders = [torch.eye(4), torch.eye(4)[[1, 0, 2, 3]]]
    W = torch.eye(4)[[1, 0, 2, 3]]
    W[2] = torch.tensor([0.0, 0, 0.69, 0.7238])  # cosine 0.69 with row 2 of the identity
    assert shared_fraction_signed(match_seeds_signed(decoders), [torch.eye(4), 3 * W.T]) == 0.75
    low = match_seeds_signed(decoders)
    assert shared_fraction_signed(low, [torch.eye(4), W.T], threshold=0.68) == 1
    assert shared_fraction_signed(low, [torch.eye(4), -W.T]) == 0
    far = match_seeds_signed([torch.eye(4), W])  # decoder row 2 is now below the threshold
    assert shared_fraction_signed(far, [torch.eye(4), decoders[1].T]) == 0.75
    # Of the pairs of three seeds, one pair shares all latents and two pairs share three quarters.
    three = match_seeds_signed([torch.eye(4)] * 3)
    assert shared_fraction_signed(three, [W[[1, 0, 2, 3]].T, torch.eye(4), torch.eye(4)]) == (
        pytest.approx((1 + 0.75 + 0.75) / 3)
    )


def test_by_frequency_averages_groups():
    density = torch.tensor([[0.5, 0.1, 0.3], [0.2, 0.6, 0.4]])
    values = torch.tensor([[5.0, 1, 3], [2, 6, 4]])
    means, rates = by_frequency(values, density, groups=3)
    assert means.tolist() == [1.5, 3.5, 5.5]
    assert rates.tolist() == pytest.approx([0.15, 0.35, 0.55])


@pytest.mark.parametrize("decoders", [[A], [A, torch.eye(3)]])
def test_seed_matching_refuses_incomparable_decoders(decoders):
    with pytest.raises(UserError, match="two or more of the same shape"):
        match_seeds_signed(decoders)


def test_agreement_returns_all_metrics():
    """The second seed has the ten latents of the first in reverse, with the rarest one rotated."""
    eye = torch.eye(11)
    other = eye[:10].flip(0).clone()
    other[9] = 0.6 * eye[0] + 0.8 * eye[10]
    density = torch.arange(1, 11) / 20
    metrics, matching = agreement(
        [eye[:10], other], [eye[:10].T, other.T], [density, density.flip(0)]
    )
    assert metrics["pw_mcc_signed"] == pytest.approx(0.96)
    assert metrics["shared_fraction_signed"] == 0.9
    assert metrics["stability_decile_1"] == pytest.approx(0.6)
    assert [metrics[f"stability_decile_{n}"] for n in range(2, 11)] == [1] * 9
    assert len(metrics) == 12 and matching.partners[0, 1].tolist() == list(range(9, -1, -1))

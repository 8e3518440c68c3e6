"""Feature absorption against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from sae.metrics.absorption import absorption, absorption_of_parents
from sae.metrics.code_matching import as_codes, samples_matrix

# The feature points along the first axis and has length 5, which must not matter. Latent 0 is
# matched to it. Latents 1 to 5 have a cosine of 0.6, 0.6, 0.05, 0.02 and 0 with it.
U = torch.tensor([5.0, 0, 0])


def row(along, length=1.0):
    return [length * along, length * (1 - along**2) ** 0.5, 0]


W_DEC = torch.tensor(
    [row(1), row(0.6, 2), row(0.6), row(0.05), row(0.02), [0, 0, 1.0]], dtype=torch.float64
)


def measured(a, projection, main=(0,)):
    codes = as_codes(samples_matrix(torch.tensor([a], dtype=torch.float64)))
    acts = torch.tensor([[projection, 7.0, 7.0]], dtype=torch.float64)
    result = absorption(codes, acts, W_DEC, U, torch.tensor(main))
    return result.full.item(), result.fraction.item()


@pytest.mark.parametrize(
    ("a", "projection", "full", "fraction"),
    [
        # The matched latent writes the whole projection, or no other writes along the feature.
        ([2, 1, 0, 0, 0, 0], 2, 0, 0),
        ([1, 0, 0, 0, 0, 9], 2, 0, 0),
        # The matched latent is silent. Latent 1, of norm 2, writes 1.2 of 2, which is above the
        # required share of 0.4; then 1.2 of 3.1, which is below it.
        ([0, 1, 0, 0, 0, 0], 2, 1, 1),
        ([0, 1, 0, 0, 0, 0], 3.1, 0, 0),
        # Two latents write 0.6 of 2.8 each: enough together, but neither is enough by itself.
        ([0, 0.5, 1, 0, 0, 0], 2.8, 0, 1),
        # The matched latent writes 1 of 2. Another writes 1.2, of which 1 was missing: a half.
        ([1, 1, 0, 0, 0, 0], 2, 0, 0.5),
        # The matched latent writes 1 of 2.9, and another writes 1.2: 1.2 / 2.2.
        ([1, 1, 0, 0, 0, 0], 2.9, 0, 1.2 / 2.2),
        # A cosine of 0.05 is enough for full absorption, not for the fraction; 0.02 is for neither.
        ([0, 0, 0, 20, 0, 0], 2, 1, 0),
        ([0, 0, 0, 0, 50, 0], 2, 0, 0),
        # With a negative projection absorption is undefined and counts as 0.
        ([0, 1, 0, 0, 0, 0], -1, 0, 0),
        # The matched latent writes more than the projection, or in the opposite direction.
        ([3, 1, 0, 0, 0, 0], 2, 0, 0),
        ([-2, 1, 0, 0, 0, 0], -1, 0, 0),
        # A latent that writes in the opposite direction is no absorber, and subtracts nothing.
        ([0, 1, -1, 0, 0, 0], 2.5, 1, 1),
    ],
)
def test_absorption_equals_values_worked_out_by_hand(a, projection, full, fraction):
    assert measured(a, projection) == (full, pytest.approx(fraction))


def test_feature_with_several_latents_has_at_most_three_absorbers():
    assert measured([0, 1, 0, 0, 0, 0], 2, main=(0, 2)) == (1, 1)
    assert measured([0, 1, 0.1, 0, 0, 0], 2, main=(0, 2)) == (0, pytest.approx(1.2 / 1.26))
    codes = torch.tensor([[0.0, 1, 1, 1, 1]])
    W_dec = torch.tensor([[1.0, 0]] * 5)
    acts = torch.tensor([[7.4, 0], [7.6, 0]])
    codes = as_codes(samples_matrix(codes.repeat(2, 1)))
    # Three absorbers write 3, which is at least 0.4 of 7.4 but not of 7.6; four would suffice.
    result = absorption(codes, acts, W_dec, torch.tensor([1.0, 0]), torch.tensor([0]))
    assert result.fraction.tolist() == [1, 0]


def test_latent_that_opposes_the_feature_is_no_absorber():
    codes = as_codes(samples_matrix(torch.tensor([[0.5, 1, -1]])))
    W_dec, acts = torch.tensor([[1.0, 0], [1, 0], [0.6, 0.8]]), torch.tensor([[2.0, 0]])
    result = absorption(codes, acts, W_dec, torch.tensor([1.0, 0]), torch.tensor([0]))
    assert result.fraction.item() == pytest.approx(1 / 1.5)


def test_absorption_does_not_depend_on_chunk_size(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 6, generator=generator).clamp(min=0)
    acts = a @ W_DEC.float() + torch.randn(50, 3, generator=generator)
    codes = as_codes(samples_matrix(a))
    expected = absorption(codes, acts, W_DEC, U, torch.tensor([0]))
    assert 0 < expected.fraction.mean() < 1
    monkeypatch.setattr("sae.metrics.absorption._ROWS", 7)
    chunked = absorption(codes, acts, W_DEC, U, torch.tensor([0]))
    assert torch.equal(expected.fraction, chunked.fraction)
    assert torch.equal(expected.full, chunked.full)


def test_parents_are_scored_only_where_they_are_active():
    # Features 1 and 2 are children of feature 0, and 4 of feature 3, which has no latent. The
    # latent of feature 1 absorbs feature 0 (row 1), and the latent of feature 2 does not (row 2).
    truth = torch.eye(5)
    z = torch.tensor([[0.0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    W_dec = torch.eye(5)
    W_dec[1] = torch.tensor([1.0, 1, 0, 0, 0]) / 2**0.5
    codes = torch.tensor(
        [[0.0, 0, 0, 1, 1], [0, 2**0.5, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    )
    parents, latents = torch.tensor([-1, 0, 0, -1, 3]), torch.tensor([0, 1, 2, -1, 4])
    codes = as_codes(samples_matrix(codes))
    result = absorption_of_parents(z, codes, z @ truth, W_dec, truth, parents, latents)
    assert list(result) == [0]
    assert result[0].full.tolist() == result[0].fraction.tolist() == [1, 0]

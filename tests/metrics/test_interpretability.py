"""Interpretability scores against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sae.metrics.interpretability import (
    cosine_similarity,
    intruder_detection,
    label_agreement,
    machine_interpretability,
    random_relu_projections,
)


def world(n=2000, features=6, seed=0):
    """Return true codes with one or two features per sample."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, features, generator=generator) < 0.25
    return active * torch.rand(n, features, generator=generator).add(0.5)


def test_similarities_of_embeddings_and_labels():
    embedding = torch.tensor([[3.0, 4], [8, 6], [0, 0]])
    a, b = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 2]])
    assert cosine_similarity(embedding)(a, b).tolist() == [pytest.approx([1, 0.96, 0])]
    labels = torch.tensor([[1, 5], [1, 6], [2, 7]])
    assert label_agreement(labels)(a, b).tolist() == [[1, 0.5, 0]]
    assert label_agreement(labels[:, 0])(a, b).tolist() == [[1, 1, 0]]


def test_single_feature_latents_score_one_and_random_ones_chance():
    z = world()
    similarity = cosine_similarity(z)
    assert machine_interpretability(3 * z, similarity).min() > 0.85
    assert intruder_detection(3 * z, similarity).min() > 0.85
    shuffled = z[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]
    scores = machine_interpretability(shuffled, similarity, tasks=200)
    assert scores.mean().item() == pytest.approx(0.5, abs=0.05)
    assert intruder_detection(shuffled, similarity, tasks=200).mean().item() == pytest.approx(
        0.2, abs=0.04
    )


def test_random_projections_fire_as_often_as_the_latents_they_stand_for():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).double()
    fired = [0, 1, 20, 50]
    codes = random_relu_projections(x, fired)
    assert codes.min() == 0 and (codes != 0).sum(0).tolist() == [0, 1, 20, 49]
    active = codes[:, 2] > 0  # there the code is linear in x, up to the threshold
    ones = torch.ones(20, 1, dtype=torch.float64)
    inputs = torch.cat([x[active], ones], dim=1)
    fit = torch.linalg.lstsq(inputs, codes[active, 2:3]).solution
    torch.testing.assert_close(inputs @ fit, codes[active, 2:3])
    assert torch.equal(codes, random_relu_projections(x, fired))
    assert not torch.equal(codes, random_relu_projections(x, fired, seed=1))
    shifted = random_relu_projections(x + 5, fired)  # an offset moves the thresholds only
    torch.testing.assert_close(shifted, codes)
    assert random_relu_projections(x, []).shape == (50, 0)


def test_random_projections_beat_guessing():
    z = world()
    similarity = cosine_similarity(z)
    x = z @ torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    random = random_relu_projections(x, [400] * 20)
    assert machine_interpretability(random, similarity).mean() > 0.8  # guessing gets 0.5
    assert intruder_detection(random, similarity).mean() > 0.4  # guessing gets 0.2


def test_mis_and_intruder_of_a_latent_that_equals_a_label():
    # The latent fires on exactly the 48 of 192 samples with label 1. In every task the similarities
    # of the queries q and the explanations E are s(q+, E+) = 1, s(q+, E-) = 0, s(q-, E+) = 0 and
    # s(q-, E-) = 1, so D+ - D- = 2.
    labels = (torch.arange(192) < 48).long()
    codes = (labels * torch.arange(192).add(1)).float()[:, None]
    agree = label_agreement(labels)
    assert machine_interpretability(codes, agree).tolist() == [1]
    expected = 1 / (1 + math.exp(-0.16 * 2))
    scores = machine_interpretability(codes, agree, alpha=0.16)
    assert scores.item() == pytest.approx(expected)
    # If all similarities are equal, all tasks are ties, which count one half.
    same = label_agreement(torch.zeros(192))
    assert machine_interpretability(codes, same).tolist() == [0.5]
    assert intruder_detection(codes, agree).tolist() == [1]
    assert intruder_detection(codes, same).tolist() == pytest.approx([1 / 5])
    # With the similarity negated, the intruder is the most similar to the other samples.
    assert intruder_detection(codes, lambda a, b: -agree(a, b)).tolist() == [0]


def test_query_is_the_least_extreme_sample_drawn():
    # The top quarter of 40 samples is 10 to 19. Every task explains with its nine strongest, and
    # the query is the weakest, 10. The bottom quarter is 20 to 29, with the highest, 29, as query.
    codes = torch.full((40, 1), 0.5)
    codes[10:20, 0] = torch.arange(1.0, 11)
    codes[20:30, 0] = torch.arange(-11.0, -1)
    asked = []

    def similarity(a, b):
        asked.append((a, b))
        return (b - a).double()

    machine_interpretability(codes, similarity, tasks=3)
    assert {(a.unique().item(), *sorted(b[0].tolist())) for a, b in asked} == {
        (10, *range(11, 20)),
        (10, *range(20, 29)),
        (29, *range(11, 20)),
        (29, *range(20, 29)),
    }


def test_latents_that_fire_too_rarely_get_nan():
    z = world(400, 3)
    z[:, 1] = 0
    z[:36, 1] = 1
    scores = machine_interpretability(z, cosine_similarity(z), latents=[1, 0])
    assert math.isnan(scores[0]) and not math.isnan(scores[1])
    assert not math.isnan(
        machine_interpretability(z, cosine_similarity(z), latents=[1], references=8)
    )
    z[3:, 1] = 0
    assert math.isnan(intruder_detection(z, cosine_similarity(z), latents=[1]))


def test_interpretability_depends_on_the_seed_and_not_on_other_latents():
    z, noise = world(300), world(300, seed=5)
    for score in (machine_interpretability, intruder_detection):
        scores = score(noise, cosine_similarity(z))
        assert torch.equal(scores, score(noise, cosine_similarity(z)))
        assert torch.equal(scores[[4, 2]], score(noise, cosine_similarity(z), latents=[4, 2]))
        assert not torch.equal(scores, score(noise, cosine_similarity(z), seed=1))
        twice = score(noise[:, [2, 2]], cosine_similarity(z), tasks=50)  # drawn per latent
        assert twice[0] != twice[1]

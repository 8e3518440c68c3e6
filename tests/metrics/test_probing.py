"""Sparse probing on labels with known answers."""

from __future__ import annotations

import math

import pytest
import torch

from sae.errors import UserError
from sae.metrics.probing import sparse_probing_balanced_accuracy


def data(n=300):
    """Return codes, activations and labels: the first label is latent 1, the second 2 or 3."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.rand(n, 4, generator=generator) < 0.3
    labels = torch.stack([bits[:, 0], bits[:, 1] | bits[:, 2], torch.arange(n) < 6], 1)
    codes = torch.cat([bits[:, 3:], bits[:, :3]], 1).float() * 2
    acts = codes @ torch.randn(4, 4, generator=generator)
    return codes, acts, labels


def test_probe_needs_as_many_latents_as_the_label_uses():
    codes, acts, labels = data()
    accuracy = sparse_probing_balanced_accuracy(codes, acts, labels)
    assert accuracy.latents[1][0] == accuracy.latents[2][0] == accuracy.latents[5][0] == 1
    # The label is an "or" of two latents. With one of them, all negatives and 30 of 51 positives
    # are classified correctly.
    assert accuracy.latents[1][1].item() == pytest.approx((1 + 0.3 / 0.51) / 2, abs=0.05)
    assert accuracy.latents[2][1] == accuracy.latents[5][1] == 1
    assert accuracy.acts[0] == 1
    for scores in (*accuracy.latents.values(), accuracy.acts, accuracy.neuron):
        assert math.isnan(scores[2])


def test_probe_baselines_on_activations():
    codes, _, labels = data()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(300, generator=generator) - 0.5
    # The label is a difference of two activations. They are small because scale must not matter.
    acts = 1e-3 * torch.stack([torch.zeros(300), labels[:, 0] + x, x + 9], 1)
    accuracy = sparse_probing_balanced_accuracy(codes, acts, labels[:, 0], ks=[1])
    assert accuracy.acts.item() > 0.98
    assert 0.8 < accuracy.neuron.item() <= accuracy.acts.item()
    unrelated = sparse_probing_balanced_accuracy(codes, acts[:, 2:], labels[:, 0], ks=[1])
    assert unrelated.acts.item() == unrelated.neuron.item() == pytest.approx(0.5, abs=0.1)


def test_rare_labels_count_as_much_as_frequent_ones():
    # One sample in twenty is positive, and the class means are 1.5 standard deviations apart. A
    # threshold halfway between them classifies Phi(.75) = .77 of each class correctly. A probe that
    # maximises plain accuracy would call nearly all samples negative.
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(4000) % 20 == 0
    codes = torch.randn(4000, 1, generator=generator) + 1.5 * labels[:, None]
    accuracy = sparse_probing_balanced_accuracy(codes, codes, labels, ks=[1])
    assert accuracy.latents[1].item() == pytest.approx(0.773, abs=0.04)


def test_probe_uses_latents_that_are_silent_on_a_label():
    codes, acts, labels = data()
    codes[:, 1] = (~labels[:, 0]).float()
    accuracy = sparse_probing_balanced_accuracy(codes, acts, labels[:, 0], ks=[1])
    assert accuracy.latents[1].item() == 1


def test_unrelated_labels_score_chance_however_rare():
    codes, acts, _ = data(3000)
    labels = torch.rand(3000, 8, generator=torch.Generator().manual_seed(2)) < 0.1
    accuracy = sparse_probing_balanced_accuracy(codes, acts, labels)
    assert accuracy.latents[5].mean().item() == pytest.approx(0.5, abs=0.04)


def test_probing_depends_on_the_seed_and_refuses_unequal_samples():
    codes, acts, labels = data()
    labels = labels[:, 1]
    accuracy = [sparse_probing_balanced_accuracy(codes, acts, labels, seed=s) for s in (0, 0, 1)]
    assert accuracy[0].latents[1] == accuracy[1].latents[1] != accuracy[2].latents[1]
    with pytest.raises(UserError, match="300 codes, 299 activations and 300 labels"):
        sparse_probing_balanced_accuracy(codes, acts[1:], labels)

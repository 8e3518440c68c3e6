"""Identifiability against values worked out by hand, and in cases where it must fail."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy.linalg import hadamard

from sae.errors import UserError
from sae.metrics.identifiability import (
    Labelled,
    identify,
    label_share,
    linear_r2,
    linear_r2_ceiling,
    orthogonality_error,
)
from sae.worlds import Exact, NonlinearMixing, PrototypeLatents, SparseLatents


@pytest.fixture
def z():
    """Return 64 samples of 8 latents that are uncorrelated in either half.

    They are columns of a Hadamard matrix.
    """
    half = torch.tensor(hadamard(32)[:, 1:9], dtype=torch.float64)
    return torch.cat([half, half])


def test_r2_of_a_linear_network_is_1(z):
    W = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = z @ W + 3
    assert linear_r2(z, y) == pytest.approx(1, abs=1e-12)
    assert linear_r2(y, z) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_r2_of_lower_rank_is_the_share_of_dimensions(z, rank):
    y = z[:, :rank]
    assert linear_r2(z, y) == pytest.approx(1, abs=1e-12)
    assert linear_r2(y, z) == pytest.approx(rank / 8, abs=1e-12)
    assert linear_r2_ceiling(z, rank) == pytest.approx(rank / 8)


def test_r2_fits_on_one_half_and_scores_on_the_other():
    """Compare three targets t of one source s with R^2 worked out by hand.

    The first is fitted by t = s + 5, and the half that is scored has t = 2 s + 5: an error of 1 + 1
    of a total of 4 + 4. The second is fitted by 0 s. The third is constant where it is scored.
    """
    s = torch.tensor([[-1.0], [0.0], [1.0]] * 2)
    first = torch.tensor([[4.0, 1, 7], [5, -2, 7], [6, 1, 9], [3, 0, 7], [5, 0, 7], [7, 3, 7]])
    assert linear_r2(s, first[:, :1]) == pytest.approx(1 - 2 / 8)
    # The mean is 0 in the fitted half and 1 in the scored half: the error is 9, the variance 6.
    assert linear_r2(s, first[:, 1:2]) == pytest.approx(1 - 9 / 6)
    assert linear_r2(s, first) == pytest.approx((0.75 - 0.5) / 2)
    assert math.isnan(linear_r2(s, first[:, 2:]))


def test_r2_ceiling_of_correlated_latents():
    """Two equal latents and an uncorrelated one have eigenvalues 2, 1 and 0."""
    z = torch.tensor([[1.0, 2, 1], [1, 2, -1], [-1, -2, 1], [-1, -2, -1]])
    assert linear_r2_ceiling(z, 1) == pytest.approx(2 / 3)
    assert linear_r2_ceiling(z, 2) == pytest.approx(1)


def test_orthogonality_error_equals_value_worked_out_by_hand(z):
    """Use z = y A, where A has singular values 2 and 1/2 with mean 5/4."""
    z = z[:, :2]
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    y = z * torch.tensor([0.5, 2.0]) @ turn
    assert orthogonality_error(y, z, scale=1.0) == pytest.approx(0.75)
    assert orthogonality_error(y, z) == pytest.approx(0.6)
    assert orthogonality_error(7 * z @ turn, z, scale=7.0) == pytest.approx(0, abs=1e-12)
    assert orthogonality_error(7 * z @ turn, z) == pytest.approx(0, abs=1e-12)


def test_label_share_equals_value_worked_out_by_hand():
    """The variance within labels is 4 / (4 - 2), and the total variance is 20 / 3."""
    y, labels = torch.tensor([[0.0], [2], [4], [6]]), torch.tensor([3, 3, 8, 8])
    assert label_share(y, labels) == pytest.approx(1 - 2 / (20 / 3))
    assert label_share(torch.tensor([[1.0], [1], [4], [4]]), labels) == 1
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert abs(label_share(noise, torch.arange(4000) // 2)) < 0.06
    with pytest.raises(UserError, match="each of the 4"):
        label_share(y, torch.arange(4))


def test_r2_refuses_too_few_samples():
    with pytest.raises(UserError, match="10 and 10 samples of 5 dimensions .* at least 14"):
        linear_r2(torch.randn(10, 5), torch.randn(10, 2))
    with pytest.raises(UserError, match="20 and 10"):
        linear_r2(torch.randn(20, 5), torch.randn(10, 2))


def test_each_result_uses_its_own_pair_of_networks(z):
    """Give each network a different number of the 8 latents.

    The data have 4, the network 6 and its twin 4 of them; the untrained networks have 2 and 1.
    """
    keep = lambda n: lambda x: z[:, :n]
    results = identify(
        keep(6),
        Labelled(z[:, :4], z, torch.arange(64) % 4),
        untrained=keep(2),
        twin=keep(4),
        untrained_twin=keep(1),
        logits=lambda y: torch.eye(4, dtype=torch.float64)[torch.arange(64) % 2 * 3] * 2,
        classes=40,
        scale=2.0,
    )
    assert results.samples == 64 and results.warnings == []
    expected = {
        "z_to_y": 1,
        "z_to_y_untrained": 1,
        "y_to_z": 6 / 8,
        "y_to_z_untrained": 2 / 8,
        "y_to_z_ceiling": 6 / 8,
        "x_to_z": 4 / 8,
        "z_to_x": 1,
        "cross_seed": (1 + 4 / 6) / 2,
        "cross_seed_untrained": (1 + 1 / 2) / 2,
        "orthogonality_error": 1.0,
        # Labels repeat 0, 1, 2, 3, and predictions repeat 0, 3.
        "accuracy": 0.5,
        "loss": math.log(math.e**2 + 3) - 1.0,
        "chance_loss": math.log(4),
        "label_share": label_share(z[:, :6], torch.arange(64) % 4),
    }
    metrics = results.metrics()
    assert {k: pytest.approx(v, abs=1e-9) for k, v in expected.items()} == {
        k: v for k, v in metrics.items() if k in expected
    }
    assert json.loads(json.dumps(metrics)) == metrics


def test_without_latents_only_seeds_are_compared(z):
    results = identify(lambda x: x[:, :4], Labelled(z), twin=lambda x: x[:, 2:6])
    assert results.cross_seed == pytest.approx(0.5)
    assert results.z_to_y is None and set(results.metrics()) == {
        "samples",
        "cross_seed",
        "warnings",
    }


def test_warning_for_too_few_classes(z):
    few = identify(lambda x: x, Labelled(z, z, torch.arange(64) % 3), classes=8)
    assert [w for w in few.warnings if w.startswith("8 classes cannot tell 8 latents apart")]
    assert not identify(lambda x: x, Labelled(z, z, torch.arange(64) % 3), classes=9).warnings


def test_constant_latent_takes_no_dimension(z):
    with_constant = torch.cat([z, torch.ones(64, 1)], dim=1)
    assert linear_r2_ceiling(with_constant, 2) == pytest.approx(2 / 8)


def test_warning_for_separable_classes_from_label_share_or_accuracy(z):
    """In one case the label determines the representation, in the other it is always predicted."""
    label = torch.arange(64) % 10
    (collapsed,) = identify(lambda x: x, Labelled(torch.eye(10)[label], labels=label)).warnings
    assert collapsed.startswith("The classes are separable (the label explains 100%")
    label = (z[:, 0] > 0).long()
    logits = lambda y: 9 * torch.stack([-y[:, 0], y[:, 0]], dim=1)
    (settled,) = identify(lambda x: x, Labelled(z, labels=label), logits=logits).warnings
    assert settled.startswith("The classes are separable (accuracy 1.000") and "11% of" in settled


def test_warning_if_training_identified_nothing(z):
    keep = lambda n: lambda x: x[:, :n]
    (warning,) = identify(keep(3), Labelled(z, z), untrained=keep(5)).warnings
    assert "0.375, not above the 0.625 of an untrained" in warning


def trained(latents, **settings):
    world = NonlinearMixing(6, latents, widths=[64, 64], batch_size=256, lr=5e-3, **settings)
    z, labels = world.sample("held_out", 0, 4096, 0)
    return identify(
        world.network,
        Labelled(world.mixing(z), z, labels),
        untrained=world.untrained_network(),
        logits=world.network.logits,
    )


@pytest.mark.slow
def test_overlapping_classes_identify_and_separable_ones_do_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sparse = Exact(mean_active=2)
    good = trained(SparseLatents(n_features=6, active=sparse), classes=40, steps=600)
    assert good.warnings == [] and good.y_to_z > good.y_to_z_untrained + 0.1
    apart = PrototypeLatents(n_features=6, active=sparse, spread=0.02)
    bad = trained(apart, classes=40, steps=600)
    assert bad.warnings[0].startswith("The classes are separable (accuracy 0.9")
    assert "collapses" in bad.warnings[0]
    assert bad.label_share > 0.9 > good.label_share
    assert bad.y_to_z < good.y_to_z

"""Latents with classes: z and the posterior of its class, compared with their densities."""

from __future__ import annotations

import pytest
import torch
from scipy.special import ive

from sae.errors import UserError
from sae.worlds import (
    Compositional,
    Constant,
    Exact,
    PrototypeLatents,
    SparseLatents,
    SphereLatents,
)
from sae.worlds.seeding import generator_of

SIZE = 20_000


@pytest.mark.parametrize(("n", "kappa"), [(2, 3.0), (5, 10.0), (16, 50.0)])
def test_sphere_latents_are_von_mises_fisher(n, kappa):
    """E cos = I_{n/2}(kappa) / I_{n/2 - 1}(kappa), E cos^2 = 1 - (n - 1) E cos / kappa."""
    latents = SphereLatents(n_features=n, kappa=kappa)
    vectors = latents.class_vectors(7, generator_of(1))
    z, labels = latents.draw(SIZE, vectors, generator_of(2))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(SIZE))
    cosines = (z * vectors[labels]).sum(1).double()
    first = ive(n / 2, kappa) / ive(n / 2 - 1, kappa)
    second = 1 - (n - 1) * first / kappa
    assert abs(cosines.mean() - first) < 4.5 * ((second - first**2) / SIZE) ** 0.5
    assert abs(cosines.square().mean() - second) < 4.5 * (second / SIZE) ** 0.5
    # Around the class vector no direction is preferred.
    across = z - cosines[:, None].float() * vectors[labels]
    limit = 4.5 * ((1 - second) / (n - 1) / (SIZE / 7)) ** 0.5
    assert max(across[labels == c].mean(0).abs().max() for c in range(7)) < 1.5 * limit
    counts = torch.bincount(labels, minlength=7) / SIZE
    assert (counts - 1 / 7).abs().max() < 4.5 * (6 / 49 / SIZE) ** 0.5


def test_classes_of_sparse_latents_follow_the_softmax_posterior():
    latents = SparseLatents(n_features=6, active=Exact(mean_active=2), sharpness=3.0)
    vectors = latents.class_vectors(4, generator_of(1))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    z, labels = latents.draw(SIZE, vectors, generator_of(2))
    assert ((z != 0).sum(1) == 2).all() and z.max() <= 2 and z[z != 0].min() > 0.25
    posterior = (3.0 * z @ vectors.T).softmax(1).double()
    hit = torch.nn.functional.one_hot(labels, 4).double() - posterior
    variance = posterior * (1 - posterior)
    for weight in (torch.ones(SIZE), z[:, 0], posterior[:, 1]):
        off = (weight[:, None] * hit).sum(0).abs()
        assert (off < 4.5 * (weight[:, None].square() * variance).sum(0).sqrt()).all()


def test_prototype_latents_are_sparse_prototypes_plus_noise():
    latents = PrototypeLatents(n_features=6, active=Exact(mean_active=2), spread=0.1)
    prototypes = latents.class_vectors(9, generator_of(1))
    assert ((prototypes != 0).sum(1) == 2).all()
    z, labels = latents.draw(SIZE, prototypes, generator_of(2))
    noise = z - prototypes[labels]
    assert noise.std().item() == pytest.approx(0.1, rel=4.5 / (2 * noise.numel()) ** 0.5)
    assert noise.mean(0).abs().max() < 4.5 * 0.1 / SIZE**0.5


def test_out_of_distribution_latents_have_other_combinations():
    latents = SparseLatents(n_features=9, active=Compositional(), magnitudes=Constant())
    other = latents.out_of_distribution()
    vectors = latents.class_vectors(3, generator_of(0))
    z, out = (part.draw(500, vectors, generator_of(1))[0] for part in (latents, other))
    assert not (z[:, :1] * z[:, 5:]).any() and out[:, 0].all()
    assert SparseLatents().out_of_distribution() is None
    assert SphereLatents().out_of_distribution() is None


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SphereLatents(n_features=1), "n_features=1"),
        (lambda: SphereLatents(kappa=0.0), "kappa=0.0"),
        (lambda: SparseLatents(sharpness=-1.0), "sharpness=-1.0"),
        (lambda: SparseLatents(n_features=2), "mean_active=3"),
        (lambda: PrototypeLatents(spread=0.0), "spread=0.0"),
    ],
)
def test_error_names_the_setting_out_of_range(make, named):
    with pytest.raises(UserError, match=named):
        make()

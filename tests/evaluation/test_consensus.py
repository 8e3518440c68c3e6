"""The consensus of several seeds against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.sites import SkipTranscoder
from sae.autoencoder.sparsity import BatchTopK, Gated, GroupMax, JumpReLU, MatchingPursuit, TopK
from sae.evaluation.consensus import consensus

D_IN = 8


def sae_with(W_dec: torch.Tensor, rule=None, *, W_enc: torch.Tensor | None = None, **values) -> SAE:
    """Return an SAE with the given decoder rows, and the same encoder unless one is given."""
    sae = SAE(W_dec.shape[1], rule or TopK(d_sae=len(W_dec), k=2), dtype=W_dec.dtype)
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_((W_dec if W_enc is None else W_enc).T)
        for name, value in values.items():
            getattr(sae, name).copy_(torch.as_tensor(value, dtype=W_dec.dtype))
    return sae


def permuted(sae: SAE, order: torch.Tensor) -> SAE:
    copy = SAE(sae.d_in, sae.sparsity, dtype=sae.b_dec.dtype)
    state = sae.state_dict()
    for name, tensor in state.items():
        if name == "W_enc":
            state[name] = tensor[:, order]
        elif tensor.dim() and name != "b_dec":
            state[name] = tensor[order]
    copy.load_state_dict(state)
    return copy


def turned(degrees: float) -> torch.Tensor:
    """Return a direction in the plane of the first two of four axes."""
    angle = math.radians(degrees)
    return torch.tensor([math.cos(angle), math.sin(angle), 0, 0], dtype=torch.float64)


@pytest.mark.parametrize(
    "rule",
    [
        TopK(d_sae=24, k=3),
        BatchTopK(d_sae=24, k=3),
        JumpReLU(d_sae=24),
        Gated(d_sae=24),
        MatchingPursuit(d_sae=24, k=3),
    ],
)
def test_consensus_of_permuted_copies_is_the_first(rule):
    generator = torch.Generator().manual_seed(0)
    first = SAE(D_IN, rule, seed=1)
    with torch.no_grad():
        for tensor in first.state_dict().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator).abs()
        first.project()
    orders = [torch.randperm(24, generator=generator) for _ in range(2)]
    agreed = consensus([first, *(permuted(first, order) for order in orders)])
    assert agreed.sparsity == rule
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(agreed.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    assert agreed.stability.tolist() == pytest.approx([1.0] * 24)
    x = torch.randn(50, D_IN, generator=generator)
    torch.testing.assert_close(agreed(x), first(x), rtol=1e-5, atol=1e-6)


def test_consensus_averages_shared_latents():
    """Two seeds share one latent at cosine 0.8, in another order; the others are orthogonal."""
    eye = torch.eye(4, dtype=torch.float64)
    near = torch.tensor([0.8, 0.6, 0, 0], dtype=torch.float64)
    a = sae_with(torch.stack([eye[0], eye[2]]), b_enc=[1.0, 7.0], b_dec=[0.0, 2, 0, 0])
    b = sae_with(torch.stack([eye[3], 3 * near]), b_enc=[7.0, 2.0], b_dec=[4.0, 0, 0, 0])
    agreed = consensus([a, b])
    assert (agreed.d_sae, agreed.sparsity.k) == (1, 1)  # k is lowered to the one latent
    # (1, 0) + (.8, .6) = (1.8, .6) has length sqrt(3.6). The row norms 1 and 3 are averaged.
    expected = torch.tensor([[1.8, 0.6, 0, 0]], dtype=torch.float64) / math.sqrt(3.6) * 2
    torch.testing.assert_close(agreed.W_dec.data, expected)
    torch.testing.assert_close(agreed.W_enc.data[:, 0], (eye[0] + 3 * near) / 2)
    assert agreed.b_enc.tolist() == [1.5] and agreed.b_dec.tolist() == [2, 1, 0, 0]
    assert agreed.stability.tolist() == pytest.approx([0.8])


def test_consensus_follows_the_rule_of_its_weights():
    """The encoder of MatchingPursuit is its decoder, with rows of norm 1.

    A mean of two rows at cosine 0.8 is shorter, so it must be normalised.
    """
    a, b = (sae_with(turned(angle)[None], MatchingPursuit(d_sae=1, k=1)) for angle in (0, 36.87))
    agreed = consensus([a, b])
    assert torch.equal(agreed.W_enc, agreed.W_dec.T)
    assert agreed.W_dec.norm().item() == pytest.approx(1)


@pytest.mark.parametrize(("at_least", "shared"), [(None, [0, 1]), (2, [0, 1]), (3, [0])])
def test_latent_of_a_single_seed_is_left_out(at_least, shared):
    """Three seeds share axis 0 as a latent, two share axis 1, and each other axis has one seed."""
    eye = torch.eye(6)
    saes = [sae_with(eye[[0, 1, 2]]), sae_with(eye[[3, 0, 1]]), sae_with(eye[[4, 5, 0]])]
    agreed = consensus(saes, at_least=at_least)
    assert torch.equal(agreed.W_dec.data, eye[shared])
    assert torch.equal(agreed.W_enc.data, eye[shared].T)
    # In reverse order, matching of the shared pair starts from the second seed.
    agreed = consensus(saes[::-1], at_least=at_least)
    assert torch.equal(agreed.W_dec.data, eye[shared])


def test_every_pair_must_agree_in_decoder_and_encoder():
    """Latents at 0, 40 and -40 degrees: the last two have a cosine of only cos 80 = 0.17."""
    fan = [sae_with(turned(angle)[None], TopK(d_sae=1, k=1)) for angle in (0, 40, -40)]
    with pytest.raises(UserError, match="no latent is shared by 3 of 3 seeds at cosine 0.7"):
        consensus(fan, at_least=3)
    pair = consensus(fan)  # without the last
    torch.testing.assert_close(pair.W_dec.data, turned(20)[None])
    assert pair.stability.tolist() == pytest.approx([math.cos(math.radians(40))])
    assert consensus(fan, at_least=3, threshold=0.17).d_sae == 1
    # Seeds 0 and 2 agree. Seed 1 has another encoder, and agrees with neither of them, so matching
    # that starts from seed 1 must not find the latent a second time.
    apart = [
        sae_with(turned(0)[None], TopK(d_sae=1, k=1), W_enc=turned(a)[None]) for a in (0, 90, 0)
    ]
    assert consensus(apart).W_enc.data[:, 0].tolist() == [1, 0, 0, 0]
    with pytest.raises(UserError, match="no latent"):
        consensus(apart[:2])


def test_member_that_agrees_with_fewest_is_removed_first():
    """Latents at 0, -44, 30 and 35 degrees: the one at -44 agrees only with the one at 0."""
    fan = [sae_with(turned(angle)[None], TopK(d_sae=1, k=1)) for angle in (0, -44, 30, 35)]
    agreed = consensus(fan)
    mean = (turned(0) + turned(30) + turned(35)) / 3
    torch.testing.assert_close(agreed.W_dec.data[0], mean / mean.norm())
    cosines = [math.cos(math.radians(a)) for a in (30, 35, 5)]
    assert agreed.stability.tolist() == pytest.approx([sum(cosines) / 3])


def test_shared_parameters_are_averaged_over_all_seeds():
    rows = torch.eye(3)
    site = SkipTranscoder(read="a", predict="b").bind({"a": 3, "b": 3})
    saes = [SAE(3, BatchTopK(d_sae=3, k=2, k_start=3, k_anneal=0.5), site=site) for _ in range(2)]
    for number, sae in enumerate(saes):
        with torch.no_grad():
            sae.W_dec.copy_(rows[[0, 1, 2]] if number else rows[[2, 0, 1]])
            sae.W_enc.copy_(sae.W_dec.T)
            sae.W_skip.copy_(torch.arange(9.0).view(3, 3) * number)
            sae.b_dec.copy_(torch.arange(3.0) * number)
            sae.threshold.fill_(number)
        sae.metadata = {"model": "m", "seed": number, "run": f"r{number}"}
    agreed = consensus(saes)
    assert torch.equal(agreed.W_skip.data, torch.arange(9.0).view(3, 3) / 2)
    assert agreed.b_dec.tolist() == [0, 0.5, 1] and agreed.threshold.tolist() == [0.5] * 3
    assert agreed.sparsity == BatchTopK(d_sae=3, k=2)
    assert agreed.metadata == {
        "model": "m",
        "consensus_of": ["r0", "r1"],
        "seeds": [0, 1],
        "threshold": 0.7,
        "at_least": 2,
    }


def test_consensus_is_saved_and_loaded_as_any_sae(tmp_path):
    agreed = consensus([sae_with(torch.eye(4)), sae_with(torch.eye(4))])
    agreed.save(tmp_path / "c")
    loaded = SAE.load(tmp_path / "c")
    assert loaded.stability.tolist() == [1.0] * 4 and loaded.metadata == agreed.metadata
    assert torch.equal(loaded(torch.ones(2, 4)), agreed(torch.ones(2, 4)))


@pytest.mark.parametrize(
    ("saes", "options", "words"),
    [
        ([sae_with(torch.eye(4))], {}, "at least two SAEs"),
        (
            [sae_with(torch.eye(4)), sae_with(torch.eye(4), TopK(d_sae=4, k=3))],
            {},
            "only in their seed",
        ),
        ([sae_with(torch.eye(4))] * 2, {"at_least": 3}, "at_least=3; give 2 to 2"),
        ([sae_with(torch.eye(4))] * 2, {"at_least": 1}, "at_least=1; give 2 to 2"),
        (
            [sae_with(torch.eye(4), GroupMax(d_sae=4, k=2))] * 2,
            {},
            "index of a latent has a meaning in GroupMax",
        ),
    ],
)
def test_consensus_refuses_unusable_input(saes, options, words):
    with pytest.raises(UserError, match=words):
        consensus(saes, **options)


def test_consensus_refuses_grouped_latents():
    from sae.autoencoder.sites import CrossLayerTranscoder

    site = CrossLayerTranscoder(read=["a", "b"], predict=["c", "d"]).bind(dict.fromkeys("abcd", 4))
    saes = [SAE(site.d_in, TopK(d_sae=4, k=2), site=site, d_out=site.d_out)] * 2
    with pytest.raises(UserError, match="index of a latent has a meaning in CrossLayerTranscoder"):
        consensus(saes)

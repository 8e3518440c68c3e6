from __future__ import annotations

import pytest
import torch

from kernel_cases import normal, ragged
from sae_kernels.codes import Codes
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk


def fixed() -> Codes:
    values = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [3.0, 4.0, 5.0]])
    indices = torch.tensor([[4, 0, 2], [0, 1, 2], [2, 4, 1]])
    return Codes(values, indices, 6)


def test_dense_l0_and_fired():
    codes = fixed()
    want = torch.tensor([[0, 0, 1, 0, 2, 0], [0, 0, 0, 0, 0, 0], [0, 5, 3, 0, 4, 0]])
    assert codes.batch == 3
    assert codes.to_dense().tolist() == want.tolist()
    assert codes.l0().tolist() == [2, 0, 3]
    assert codes.fired().tolist() == [False, True, True, False, True, False]


def test_ragged_agrees_with_its_dense_form():
    codes = ragged([3, 0, 7, 1, 0], 9, seed=4, dtype=torch.float64)
    codes.values[2] = 0
    dense = torch.zeros(5, 9, dtype=torch.float64)
    for token in range(5):
        for slot in range(codes.offsets[token], codes.offsets[token + 1]):
            dense[token, codes.indices[slot]] += codes.values[slot]
    assert codes.batch == 5
    torch.testing.assert_close(codes.to_dense(), dense)
    assert codes.l0().tolist() == [2, 0, 7, 1, 0]
    assert codes.fired().tolist() == (dense != 0).any(0).tolist()


@pytest.mark.parametrize(
    "rows", [slice(1, 4), slice(0, 0), slice(2, None), slice(3, 1), slice(-2, 99)]
)
@pytest.mark.parametrize("kind", ["fixed", "ragged"])
def test_rows(kind, rows):
    codes = ragged([3, 0, 7, 1, 0], 9, seed=4, dtype=torch.float64)
    if kind == "fixed":
        codes = Codes(codes.values[:10].view(5, 2), codes.indices[:10].view(5, 2), 9)
    part = codes.rows(rows)
    assert part.batch == len(range(5)[rows])
    assert torch.equal(part.to_dense(), codes.to_dense()[rows])


@pytest.mark.parametrize("d_sae", [9, 2**15, 2**15 + 1, 2**16 + 3])
def test_pairs_by_latent(d_sae):
    """Slots are ordered by latent, then token; the first and the last latent occur."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(d_sae, (50, 4), generator=generator)
    indices[7], indices[9], indices[11:20] = 0, d_sae - 1, 5
    pairs = Codes(torch.ones(50, 4), indices, d_sae).by_latent()
    flat = indices.flatten().tolist()
    order = sorted(range(200), key=lambda slot: flat[slot])
    assert pairs.slots.tolist() == order
    assert pairs.tokens.tolist() == [slot // 4 for slot in order]
    counts = pairs.latent_starts.diff()
    assert pairs.latent_starts.dtype == torch.int64 and pairs.latent_starts[0] == 0
    assert counts.tolist() == torch.bincount(indices.flatten(), minlength=d_sae).tolist()


def test_pairs_of_ragged_codes():
    codes = ragged([3, 0, 7, 1, 0], 9, seed=4, dtype=torch.float64)
    pairs = codes.by_latent()
    token_of_slot = [0] * 3 + [2] * 7 + [3]
    assert pairs.token_of_slot.tolist() == token_of_slot
    order = sorted(range(11), key=lambda slot: codes.indices[slot].item())
    assert pairs.slots.tolist() == order
    assert pairs.tokens.tolist() == [token_of_slot[slot] for slot in order]


def test_pairs_are_sorted_once_for_both_backward_passes(monkeypatch):
    sorts = []
    original = torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor,
        "sort",
        lambda *args, **kwargs: (sorts.append(1), original(*args, **kwargs))[1],
    )
    W_enc, W_dec = (
        normal(40, 6, seed=1).t().requires_grad_(),
        normal(40, 6, seed=2).requires_grad_(),
    )
    b_enc, b_dec = torch.zeros(40, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    codes = encode_topk(normal(20, 6, seed=3), W_enc, b_enc, 4, b_dec)
    assert not sorts
    decode(codes, W_dec, b_dec).square().sum().backward()
    assert len(sorts) == 1
    assert (
        codes.detach().by_latent() is codes.by_latent() and not codes.detach().values.requires_grad
    )

"""Test `SAE.encode(x, refine=T)` for every sparsity rule, and when it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import SAE, UserError
from sae.autoencoder.sites import (
    Autoencoder,
    Crosscoder,
    CrossLayerTranscoder,
    SkipTranscoder,
    Transcoder,
)
from sae.autoencoder.sparsity import TopK
from sae.inference import refine
from tiny import all_rules

RULES = all_rules(48, k=4)
EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def sae_and_data(rule, site=None, **settings) -> tuple[SAE, Tensor]:
    sae = SAE(12, rule, site=site, dtype=torch.float64, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn(12, generator=generator, dtype=torch.float64))
        sae.b_enc.sub_(0.3)
    return sae, torch.randn(40, 12, generator=generator, dtype=torch.float64)


@EVERY_RULE
def test_refine_lowers_the_error_without_more_latents(rule):
    sae, x = sae_and_data(rule)
    plain = sae.encode(x)
    better = sae.encode(x, refine=3)
    error = lambda codes: (x - sae.decode(codes)).square().sum(1)
    assert (better.l0() <= plain.l0()).all() and better.l0().sum() > 0
    assert (error(better) <= error(plain) + 1e-12).all()
    assert error(better).mean() < 0.9 * error(plain).mean()
    assert bool((better.values < 0).any()) == rule.signed
    assert not better.values.requires_grad
    expected = refine(x, sae.W_dec, plain, 3, non_negative=not rule.signed, b=sae.b_dec).codes
    assert torch.equal(better.to_dense(), expected.to_dense())


@EVERY_RULE
def test_refine_0_gives_the_codes_of_the_encoder(rule):
    sae, x = sae_and_data(rule)
    plain, none = sae.encode(x), sae.encode(x, refine=0)
    assert torch.equal(plain.values, none.values) and torch.equal(plain.indices, none.indices)
    assert none.values.requires_grad


def test_refine_accepts_the_dtype_of_the_sae():
    sae = SAE(12, TopK(d_sae=48, k=4), dtype=torch.bfloat16)
    codes = sae.encode(torch.randn(5, 12), refine=2)
    assert codes.values.dtype == torch.bfloat16


def test_refine_works_for_a_crosscoder():
    site = Crosscoder(read=("a", "b")).bind({"a": 6, "b": 6})
    sae, x = sae_and_data(TopK(d_sae=48, k=4), site)
    error = lambda codes: (x - sae.decode(codes)).square().sum()
    assert error(sae.encode(x, refine=2)) < error(sae.encode(x))


def test_refine_is_refused_for_transcoders_and_bad_values():
    sae, x = sae_and_data(TopK(d_sae=48, k=4), Autoencoder(hook="a"))
    with pytest.raises(UserError, match="refine=-1"):
        sae.encode(x, refine=-1)
    for kind in (Transcoder, SkipTranscoder):
        site = kind(read="a", predict="b").bind({"a": 12, "b": 12})
        sae, x = sae_and_data(TopK(d_sae=48, k=4), site)
        with pytest.raises(UserError, match="a -> b predicts something other"):
            sae.encode(x, refine=1)
    site = CrossLayerTranscoder(read=("a", "b"), predict=("c", "d")).bind(dict.fromkeys("abcd", 6))
    sae = SAE(6, TopK(d_sae=48, k=4), site=site, d_out=12)
    with pytest.raises(UserError, match="refine=1"):
        sae.encode(x, refine=1)

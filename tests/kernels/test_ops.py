"""Tests of the custom ops under torch.compile.

opcheck tests the schema, the fake kernel, autograd and symbolic sizes.
"""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from torch.library import opcheck

from kernel_cases import CUDA, normal
from sae_kernels.decode import decode
from sae_kernels.decode_error import decode_error
from sae_kernels.decode_prefixes import decode_prefixes, matryoshka_levels, rank_levels
from sae_kernels.encode_batch_topk import encode_batch_topk
from sae_kernels.encode_threshold import encode_threshold
from sae_kernels.encode_topk import encode_topk


@pytest.fixture(autouse=True)
def poison() -> None:
    """Replace the fixture: dynamo cannot trace the replacements of torch.empty."""


B, D, S, K = 6, 5, 20, 3
DEVICE = "cuda" if CUDA else "cpu"  # and the backend is "auto"
OPS = torch.ops.sae_kernels


def leaf(*shape: int, seed: int) -> torch.Tensor:
    return normal(*shape, seed=seed, dtype=torch.float32).to(DEVICE).requires_grad_()


def parameters() -> list[torch.Tensor]:
    """Return x, W_enc (latent-major), b_enc, W_dec, b_dec; some rows have under K positives."""
    W_enc = leaf(S, D, seed=2).detach().t().requires_grad_()
    b_enc = (leaf(S, seed=3).detach() - 3).requires_grad_()
    return [leaf(B, D, seed=1), W_enc, b_enc, leaf(S, D, seed=4), leaf(D, seed=5)]


def codes(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return values, indices and offsets."""
    generator = torch.Generator().manual_seed(0)
    shape = (B, K) if kind == "fixed" else (17,)
    indices = torch.randint(S, shape, generator=generator).to(DEVICE)
    offsets = None if kind == "fixed" else torch.tensor([0, 3, 3, 4, 10, 12, 15], device=DEVICE)
    return leaf(*shape, seed=6), indices, offsets


@pytest.mark.parametrize("with_b_dec", [True, False])
@pytest.mark.parametrize("name", ["encode_topk", "encode_batch_topk", "encode_threshold"])
def test_encoders(name, with_b_dec):
    x, W_enc, b_enc, _, b_dec = parameters()
    layout = (leaf(S, seed=7).detach().abs(), None) if name.endswith("old") else (K,)
    opcheck(getattr(OPS, name), (x, W_enc, b_enc, b_dec if with_b_dec else None, *layout, "auto"))


@pytest.mark.parametrize("kind", ["fixed", "ragged"])
def test_decoders(kind):
    values, indices, offsets = codes(kind)
    x, _, _, W_dec, b_dec = parameters()
    layout = indices, offsets
    opcheck(OPS.decode, (values, W_dec, b_dec, *layout, "auto"))
    opcheck(OPS.decode_error, (values, W_dec, b_dec, x, *layout, "auto"))
    opcheck(OPS.decode_prefixes, (values, W_dec, b_dec, x, *layout, indices % 2, 2, "auto"))


@pytest.mark.parametrize("kind", ["fixed", "ragged"])
@pytest.mark.parametrize("needed", [(0, 1, 2, 3), (1,), (0, 3)])
def test_backward_ops(kind, needed):
    x, W_enc, _, W_dec, b_dec = (each.detach() for each in parameters())
    values, indices, offsets = codes(kind)
    values, layout = values.detach(), (indices, offsets)
    needs = [i in needed for i in range(4)]
    grad, errors = torch.ones((), device=DEVICE), torch.ones(2, device=DEVICE)
    opcheck(OPS.encode_backward, (values, x, W_enc, b_dec, values, *layout, "auto", needs))
    opcheck(OPS.decode_backward, (x, values, W_dec, *layout, "auto", needs[:3]))
    opcheck(OPS.decode_error_backward, (grad, values, W_dec, x, *layout, "auto", needs))
    opcheck(
        OPS.decode_prefixes_backward,
        (errors, values, W_dec, b_dec, x, *layout, indices % 2, "auto", needs),
    )


def reconstruct(x, W_enc, b_enc, W_dec, b_dec):
    return decode(encode_topk(x, W_enc, b_enc, K, b_dec), W_dec, b_dec)


def error(x, W_enc, b_enc, W_dec, b_dec):
    residual, squared = decode_error(encode_topk(x, W_enc, b_enc, K, b_dec), W_dec, b_dec, x)
    return squared, residual


def matryoshka(x, W_enc, b_enc, W_dec, b_dec):
    encoded = encode_topk(x, W_enc, b_enc, K)
    return decode_prefixes(encoded, matryoshka_levels(encoded, [4, S]), 2, W_dec, b_dec, x)


def ranked(x, W_enc, b_enc, W_dec, b_dec):
    encoded = encode_topk(x, W_enc, b_enc, K, b_dec)
    return decode_prefixes(encoded, rank_levels(encoded), K, W_dec, b_dec, x)


def batch_topk(x, W_enc, b_enc, W_dec, b_dec):
    encoded = encode_batch_topk(x, W_enc, b_enc, K, b_dec)
    return decode(encoded, W_dec, b_dec)


def relu(x, W_enc, b_enc, W_dec, b_dec):
    encoded = encode_threshold(x, W_enc, b_enc, b_dec)
    return decode_error(encoded, W_dec, b_dec, x)[::-1]


def results(step) -> list[torch.Tensor]:
    at = parameters()
    out = step(*at)
    first, *rest = out if isinstance(out, tuple) else (out,)
    assert first.requires_grad and not any(other.requires_grad for other in rest)
    return [first, *rest, *torch.autograd.grad(first.square().sum(), at)]


def compiled_gives_the_same_bits(step, **layout) -> None:
    torch.compiler.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        got = results(torch.compile(step, fullgraph=True, **layout))
    for got_value, eager in zip(got, results(step), strict=True):
        assert torch.equal(got_value, eager) and got_value.stride() == eager.stride()


STEPS = [reconstruct, error, matryoshka, ranked, batch_topk, relu]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_compiled_step_is_one_graph_with_the_same_bits(step):
    compiled_gives_the_same_bits(step, backend="aot_eager")


def test_another_batch_size_does_not_recompile():
    torch.compiler.reset()
    step = torch.compile(reconstruct, fullgraph=True, dynamic=True, backend="aot_eager")
    x, *rest = parameters()
    for rows in (6, 5, 3):
        batch = x[:rows].clone()
        with torch.compiler.set_stance("default" if rows == 6 else "fail_on_recompile"):
            assert torch.equal(step(batch, *rest), reconstruct(batch, *rest))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_step_compiled_by_inductor_gives_the_same_bits(step):
    compiled_gives_the_same_bits(step)


def test_eager_calls_skip_the_custom_ops(monkeypatch):
    def refuse(*args):
        raise AssertionError("dispatched")

    custom_ops = [
        (module, name)
        for module in list(sys.modules.values())
        if module.__name__.startswith("sae_kernels.")
        for name, value in vars(module).items()
        if isinstance(value, torch.library.CustomOpDef)
    ]
    assert len(custom_ops) == 10  # six ops, and the backward passes of three decoders and encoders
    for module, name in custom_ops:
        monkeypatch.setattr(module, name, refuse)
    for step in (reconstruct, error, matryoshka, ranked):
        results(step)


def test_reference_backend_compiles_without_custom_ops():
    x, W_enc, b_enc, W_dec, b_dec = parameters()

    def step(x):
        encoded = encode_topk(x, W_enc, b_enc, K, b_dec, backend="reference")
        return decode_error(encoded, W_dec, b_dec, x, backend="reference")[1]

    torch.compiler.reset()
    assert torch.equal(torch.compile(step, backend="aot_eager")(x), step(x))

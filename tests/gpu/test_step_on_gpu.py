"""Tests of complete training steps on a GPU: synchronization, reproducibility and memory."""

from __future__ import annotations

import copy

import pytest
import torch

from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.training import Learner, OptimConfig
from sae.training.cuda_graph import GraphedStep
from sae_kernels import reference
from sae_kernels.adam import square_norm
from sae_kernels.aux_error import aux_error
from sae_kernels.decode_error import decode_error
from sae_kernels.decode_prefixes import decode_prefixes, matryoshka_levels, rank_levels
from sae_kernels.encode_batch_topk import encode_batch_topk
from sae_kernels.encode_gated import encode_gated
from sae_kernels.encode_threshold import encode_jumprelu
from sae_kernels.encode_topk import encode_topk
from sae_kernels.row_grads import RowGrads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GIB = 2**30


def learner(d_in: int, d_sae: int, k: int, dtype: torch.dtype, dead: float = 0.05) -> Learner:
    """Return a learner with gradient clipping, and AuxK acting on a share of the latents."""
    trained = Learner(
        SAE(d_in, TopK(d_sae=d_sae, k=k), site=Autoencoder(hook="x"), seed=1, dtype=dtype),
        [FVU(), AuxK()],
        OptimConfig(lr=1e-3, clip_norm=0.1),
        total_steps=100,
        dead_after=10**9,
        refresh_steps=10**9,
    ).cuda()
    trained.scale = {"x": 1.0}
    trained.dead.dead_list = torch.arange(int(dead * d_sae), device="cuda")
    trained.dead.tokens_since_fired[trained.dead.dead_list] = 2 * 10**9
    return trained


def batches(n: int, batch: int, d_in: int, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda: torch.randn(batch, d_in, generator=generator, device="cuda").to(dtype)
    return [{"x": draw()} for _ in range(n)]


def tensors(trained: Learner) -> dict[str, torch.Tensor]:
    state = {name: t for name, t in trained.state_dict().items() if torch.is_tensor(t)}
    for number, moments in enumerate(trained.optimizer.state.values()):
        for name, t in moments.items():
            if torch.is_tensor(t):
                state[f"{number}.{name}"] = t
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_step_never_waits_and_gives_the_same_bits_twice(dtype):
    data = batches(6, 2048, 512, dtype)
    ends = []
    for _ in range(2):
        trained = learner(512, 8192, 32, dtype)
        for number, batch in enumerate(data):
            must_not_wait = number > 2  # kernels are tuned in the first steps, which waits
            torch.cuda.set_sync_debug_mode("error" if must_not_wait else "default")
            try:
                trained.step(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        ends.append(tensors(trained))
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_recorded_step_gives_the_same_bits(dtype):
    data = batches(12, 1024, 256, dtype)
    plain = learner(256, 4096, 32, dtype)
    recorded = copy.deepcopy(plain)
    recorded.optimizer = type(plain.optimizer)(
        [
            {"params": [recorded.sae.W_enc, recorded.sae.b_enc, recorded.sae.b_dec], "factor": 1.0},
            {"params": [recorded.sae.W_dec], "factor": 1.0, "unit_norm": True},
        ],
        lr=plain.lr,
        clip_norm=0.1,
    )
    step = GraphedStep(recorded)
    for number, batch in enumerate(data):
        if (
            number == 8
        ):  # the list of dead latents changes its length, so the step is recorded again
            for trained in (plain, recorded):
                trained.dead.dead_list = torch.arange(100, device="cuda")
        plain.step(batch)
        step(batch)
    want, got = tensors(plain), tensors(recorded)
    for name, value in want.items():
        assert torch.equal(value, got[name]), name
    assert plain.pop_metrics() == recorded.pop_metrics()


def test_peak_memory_at_the_largest_shape_stays_under_a_gibibyte():
    trained = learner(4096, 131072, 64, torch.bfloat16)
    (batch,) = batches(1, 8192, 4096, torch.bfloat16)
    for _ in range(2):
        trained.step(batch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trained.step(batch)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < GIB


@pytest.mark.parametrize("rule", ["topk", "batch_topk", "jumprelu", "gated"])
def test_every_rule_equals_the_reference(rule):
    """It uses float64, so that rounding cannot hide a different selection."""
    batch, d_in, d_sae, k = 256, 200, 5003, 17
    generator = torch.Generator("cuda").manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=generator, device="cuda", dtype=torch.float64)
    x, W_dec = draw(batch, d_in), torch.nn.functional.normalize(draw(d_sae, d_in), dim=1)
    start = [W_dec.clone().t(), draw(d_sae) - 2.5, draw(d_sae) / 9 + 1, draw(d_sae) / 9, W_dec]
    cotangent = torch.rand((), device="cuda", dtype=torch.float64, generator=generator)
    results = []
    for backend in ("auto", "reference"):
        leaves = [t.clone().requires_grad_() for t in start]
        W_enc, b_enc, threshold, r_mag, W = leaves
        b_dec, second = torch.zeros(d_in, device="cuda", dtype=torch.float64), 0.0
        if rule == "topk":
            codes = encode_topk(x, W_enc, b_enc, k, b_dec, backend=backend)
        elif rule == "batch_topk":
            codes = encode_batch_topk(x, W_enc, b_enc, k, b_dec, backend=backend)
        elif rule == "jumprelu":
            codes, gates = encode_jumprelu(
                x, W_enc, b_enc, threshold, b_dec, bandwidth=0.5, backend=backend
            )
            second = gates.sum()
        else:
            codes, gates = encode_gated(x, W_enc, b_enc, threshold, r_mag, b_dec, backend=backend)
            second = gates.values.square().sum()
        error = decode_error(codes, W, b_dec, x, backend=backend)[1]
        loss = error * cotangent + second
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        results.append([codes.to_dense(), error, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", ["matryoshka", "ranks", "aux"])
def test_losses_equal_the_reference(op):
    batch, d, d_sae, k = 128, 300, 1001, 9
    generator = torch.Generator("cuda").manual_seed(4)
    draw = lambda *size: torch.randn(*size, generator=generator, device="cuda", dtype=torch.float64)
    x, start = draw(batch, d), [draw(d_sae, d).t(), draw(d_sae), draw(d_sae, d), draw(d)]
    results = []
    for backend in ("auto", "reference"):
        W_enc, b_enc, W_dec, b_dec = leaves = [t.clone().requires_grad_() for t in start]
        if op == "aux":
            listed = torch.arange(0, d_sae, 7, device="cuda")
            out = aux_error(x, x, W_enc, b_enc, W_dec, listed, 20, b_dec=b_dec, backend=backend)
        else:
            codes = encode_topk(x, W_enc, b_enc, k, b_dec, backend=backend)
            if op == "ranks":
                levels, n = rank_levels(codes), k
            else:
                levels, n = matryoshka_levels(codes, [100, 500, d_sae]), 3
            out = decode_prefixes(codes, levels, n, W_dec, b_dec, x, backend=backend)
        weights = torch.linspace(0.5, 1.5, out.numel(), device="cuda", dtype=torch.float64)
        results.append([out, *torch.autograd.grad(out.flatten() @ weights, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_square_norm_with_a_latent_on_every_token():
    """The norm over cut lists equals the one of the dense gradient."""
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4096, 300, generator=generator, device="cuda", dtype=torch.float64)
    W_enc = torch.randn(1000, 300, generator=generator, device="cuda", dtype=torch.float64).t()
    b_enc = torch.zeros(1000, device="cuda", dtype=torch.float64)
    b_enc[7] = 1e3
    W_enc.requires_grad_()
    W_enc.row_grads = RowGrads()
    encode_topk(x, W_enc, b_enc, 5).values.square().sum().backward()
    whole = reference.dense_gradient(W_enc.t().shape, None, W_enc.row_grads)
    norm = square_norm(W_enc, None, W_enc.row_grads)
    torch.testing.assert_close(norm, whole.square().sum(), rtol=1e-10, atol=0)

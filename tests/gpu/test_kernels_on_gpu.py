"""Tests of the Triton kernels on a GPU at real sizes. tests/kernels has the small odd shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_cases import assert_as_accurate
from sae_kernels import reference
from sae_kernels.adam import adam_rows_
from sae_kernels.codes import Codes
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
HYPER = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

# (batch, d_in, d_sae, k): GPT-2's width, Gemma-2-2B's, one that no block divides, and a large k.
SHAPES = [
    (2048, 768, 24576, 32),
    (1024, 2304, 65536, 64),
    (1000, 500, 10007, 50),
    (512, 512, 8192, 1024),
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "b{}-d{}-f{}-k{}".format(*s))
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


def normal(*shape: int, seed: int) -> Tensor:
    """Return float64 values that bf16 represents exactly."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=DEVICE).bfloat16().double()


def leaves(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(dtype).clone().requires_grad_() for t in tensors]


def skewed(batch: int, d_sae: int, k: int) -> Tensor:
    """Return [batch, k] distinct latents per row: one on every token, the others Zipf-like."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    weights = 1 / torch.arange(1, d_sae + 1, device=DEVICE).double()
    noise = torch.rand(batch, d_sae, generator=generator, device=DEVICE, dtype=torch.float64)
    weights = noise.log() / weights
    weights[:, 7] = 1
    return weights.topk(k).indices


@each_shape
@each_dtype
def test_encode_topk_values_and_gradients(shape, dtype):
    batch, d_in, d_sae, k = shape
    eighths = lambda *size, seed: (normal(*size, seed=seed) * 8).round().clamp(-60, 60) / 8
    inputs = [
        eighths(batch, d_in, seed=0),
        (normal(d_sae, d_in, seed=1) / d_in**0.5).bfloat16().double().t(),
        normal(d_sae, seed=2),
        eighths(d_in, seed=3),
    ]
    fast_in = leaves(inputs, dtype)
    fast = encode_topk(*fast_in[:3], k, fast_in[3])
    cotangent = normal(batch, k, seed=4)

    x, W_enc, b_enc, b_dec = inputs
    pre_acts = (x - b_dec) @ W_enc + b_enc
    kth = pre_acts.topk(k, dim=1).values[:, -1:]
    chosen = pre_acts.gather(1, fast.indices)
    # fp32 sums may swap values this close to the k-th; bf16 selects from rounded values.
    slack = (2**-6 if dtype == torch.bfloat16 else 1e-5) * pre_acts.abs().max()
    assert (chosen >= kth - slack).all()
    assert (fast.indices.sort(1).values.diff(dim=1) > 0).all(), "an index twice in a row"

    results = []
    for kind in (torch.float64, dtype):
        args = leaves(inputs, kind)
        values = ((args[0] - args[3]) @ args[1] + args[2]).gather(1, fast.indices).relu()
        results.append([values, *torch.autograd.grad((values * cotangent.to(kind)).sum(), args)])
    grads = torch.autograd.grad((fast.values * cotangent.to(dtype)).sum(), fast_in)
    names = ["values", "x", "W_enc", "b_enc", "b_dec"]
    for name, *tensors in zip(names, [fast.values, *grads], *reversed(results), strict=True):
        assert_as_accurate(*tensors, name)
    assert grads[1].t().is_contiguous()


@pytest.mark.parametrize("k", [1, 32, 300, 5000])
def test_ties_go_to_the_lowest_index(k):
    generator = torch.Generator(DEVICE).manual_seed(k)
    integers = lambda *size: torch.randint(-1, 2, size, generator=generator, device=DEVICE).float()
    x, W_enc, b_enc = integers(64, 6), integers(5000, 6).t(), integers(5000)
    got, want = (encode_topk(x, W_enc, b_enc, k, backend=b) for b in ("auto", "reference"))
    assert torch.equal(got.to_dense(), want.to_dense())


@each_shape
@each_dtype
def test_decode_with_a_latent_on_every_token(shape, dtype):
    batch, d_in, d_sae, k = shape
    indices = skewed(batch, d_sae, k)
    inputs = [normal(batch, k, seed=5), normal(d_sae, d_in, seed=6), normal(d_in, seed=7)]
    cotangent = normal(batch, d_in, seed=8)

    def run(backend: str, kind: torch.dtype) -> list[Tensor]:
        args = leaves(inputs, kind)
        x_hat = decode(Codes(args[0], indices, d_sae), *args[1:], backend=backend)
        return [x_hat, *torch.autograd.grad(x_hat, args, cotangent.to(kind))]

    results = run("auto", dtype), run("reference", dtype), run("reference", torch.float64)
    for name, *tensors in zip(["x_hat", "values", "W_dec", "b_dec"], *results, strict=True):
        assert_as_accurate(*tensors, name)


@each_dtype
@pytest.mark.parametrize("unit_norm", [False, True], ids=["free", "unit-norm"])
def test_adam_equals_the_reference(dtype, unit_norm):
    start = torch.nn.functional.normalize(normal(4099, 2304, seed=0), dim=1)

    def run(backend: str, kind: torch.dtype) -> list[Tensor]:
        param = start.to(dtype).to(kind)
        moments = [torch.zeros_like(param), torch.zeros_like(param)]
        for step in (1, 2, 3):
            grad = normal(4099, 2304, seed=step).to(kind)
            adam_rows_(
                param, grad, *moments, step=step, unit_norm=unit_norm, backend=backend, **HYPER
            )
        return [param, *moments]

    results = run("auto", dtype), run("reference", dtype), run("reference", torch.float64)
    for name, *tensors in zip(["param", "exp_avg", "exp_avg_sq"], *results, strict=True):
        assert_as_accurate(*tensors, name)


def step(tensors: list[Tensor], x: Tensor) -> list[Tensor]:
    W_enc, b_enc, W_dec, b_dec = tensors
    codes = encode_topk(x, W_enc, b_enc, 32, b_dec)
    loss = (decode(codes, W_dec, b_dec) - x).square().mean()
    grads = torch.autograd.grad(loss, tensors)
    for param, grad in zip(tensors, grads, strict=True):
        moments = torch.zeros_like(param), torch.zeros_like(param)
        adam_rows_(param, grad, *moments, step=1, unit_norm=param is W_dec, **HYPER)
    return [codes.values, codes.indices, codes.l0(), codes.fired(), *grads, *tensors]


def test_step_never_waits_and_gives_the_same_bits_twice():
    x = normal(2048, 512, seed=0).float()
    start = [
        normal(8192, 512, seed=1).float().t(),
        torch.zeros(8192, device=DEVICE),
        torch.nn.functional.normalize(normal(8192, 512, seed=2).float(), dim=1),
        torch.zeros(512, device=DEVICE),
    ]
    want = step([t.clone().requires_grad_() for t in start], x)
    again = [t.clone().requires_grad_() for t in start]
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = step(again, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_reference_on_gpu_equals_reference_on_cpu():
    """The reference that the kernels are held to gives the same on both devices in float64."""
    inputs = [normal(64, 32, seed=0), normal(500, 32, seed=1).t(), normal(500, seed=2)]
    on_gpu = reference.encode_topk(*inputs, 9)
    on_cpu = reference.encode_topk(*(t.cpu() for t in inputs), 9)
    torch.testing.assert_close(on_gpu.to_dense().cpu(), on_cpu.to_dense())

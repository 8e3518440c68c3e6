"""Inputs, and the rule by which a fast path is judged, on CPU and GPU."""

from __future__ import annotations

import os
import unittest.mock

import pytest
import torch
from torch import Tensor

from sae_kernels.codes import Codes

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:  # a GPU machine with little more than torch: those tests are skipped there
    given = lambda *_, **__: pytest.mark.skip(reason="needs hypothesis")
    settings = lambda *_, **__: lambda test: test
    st = unittest.mock.MagicMock()

CUDA = torch.cuda.is_available()
TRITON = CUDA or os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["torch", "triton"] if TRITON else ["torch"]  # test_interpreter.py runs the others
DTYPES = [torch.float64, torch.float32, torch.bfloat16]

# (batch, d_in, d_sae, k): one of everything, primes, k = 1, k = d_sae, widths that no block
# divides. The interpreter takes about 2 ms a program, and there is one for every token and every
# latent.
SHAPES = [
    (1, 1, 1, 1),
    (37, 50, 777, 13),
    (5, 63, 37, 37),
    (63, 37, 1000, 1),
    (50, 1, 50, 5),
    (3, 1000, 101, 32),
]
if TRITON and not CUDA:
    SHAPES[1], SHAPES[3], SHAPES[4] = (7, 50, 63, 13), (9, 37, 101, 1), (10, 1, 50, 5)

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "b{}-d{}-f{}-k{}".format(*s))


def device(backend: str) -> str:
    return "cuda" if backend == "triton" and CUDA else "cpu"


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values that bf16 holds exactly, so that every dtype starts from the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16).to(dtype)


def leaves(*tensors: Tensor, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Copies with the layout kept, that require grad."""
    return [t.detach().to(device, dtype).clone().requires_grad_() for t in tensors]


def assert_as_good(fast: Tensor, plain: Tensor, truth: Tensor, what: str) -> None:
    """The error may be twice that of plain torch in the same dtype, plus one rounding of the
    largest value.

    `truth` is float64 torch. A float64 fast path is held to 16 roundings of it.
    """
    assert fast.dtype == plain.dtype and fast.shape == truth.shape, what
    fast, plain, truth = (t.detach().cpu() for t in (fast, plain, truth))
    eps = torch.finfo(plain.dtype).eps * (16 if plain.dtype == torch.float64 else 1)
    scale = truth.abs().max().item() if truth.numel() else 0.0
    error = (fast.double() - truth).abs()
    allowed = 2 * (plain.double() - truth).abs().max().item() if truth.numel() else 0.0
    assert not (~(error <= allowed + eps * scale)).any(), (
        f"{what}: error {error.max():.3e}, allowed {allowed:.3e} + {eps * scale:.3e}"
    )


def active_sets(codes: Codes) -> list[set[int]]:
    """The latents with a non-zero value, row by row, for a fixed k."""
    return [
        set(row[value != 0].tolist())
        for row, value in zip(codes.indices.cpu(), codes.values.detach().cpu(), strict=True)
    ]


def ragged(lengths: list[int], d_sae: int, *, seed: int, dtype: torch.dtype) -> Codes:
    """Codes with rows of the given lengths; latents repeat, at times within one row."""
    generator = torch.Generator().manual_seed(seed)
    nnz = sum(lengths)
    return Codes(
        normal(nnz, seed=seed + 1, dtype=dtype),
        torch.randint(d_sae, (nnz,), generator=generator),
        d_sae,
        torch.tensor([0, *lengths]).cumsum(0),
    )


def _poisoned(make):
    def poisoned(*args, **kwargs):
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        elif tensor.dtype in (torch.int32, torch.int64):
            tensor.fill_(torch.iinfo(tensor.dtype).min)
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]:
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))

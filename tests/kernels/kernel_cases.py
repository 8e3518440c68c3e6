"""Inputs for kernel tests on CPU and GPU, and the tolerance that a fast path is held to."""

from __future__ import annotations

import os
import unittest.mock
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sae_kernels.codes import Codes

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:  # a GPU machine may have little more than torch; these tests are skipped there
    given = lambda *_, **__: pytest.mark.skip(reason="needs hypothesis")
    settings = lambda *_, **__: lambda test: test
    st = unittest.mock.MagicMock()

CUDA = torch.cuda.is_available()
TRITON = CUDA or os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETER = TRITON and not CUDA
BACKENDS = ["torch", "triton"] if TRITON else ["torch"]  # test_interpreter.py runs triton too
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


# Leaves a test to `make test-all` in the interpreter, as `slow_in_interpreter` does with a case.
mark_slow_in_interpreter = pytest.mark.slow if INTERPRETER else lambda test: test


def slow_in_interpreter(*values: object) -> object:
    """Return parameters for a case that `make test` leaves to `make test-all` in the interpreter.

    The interpreter takes about 2 ms per program, and there is one for every token and every latent.
    """
    return pytest.param(*values, marks=pytest.mark.slow if INTERPRETER else ())


# (batch, d_in, d_sae, k): all ones, primes, k = 1, k = d_sae, widths that no block divides.
SHAPES = [
    (1, 1, 1, 1),
    (37, 50, 777, 13),
    (5, 63, 37, 37),
    (63, 37, 1000, 1),
    (50, 1, 50, 5),
    (3, 1000, 101, 32),
]
if INTERPRETER:
    SHAPES[1], SHAPES[3], SHAPES[4] = (7, 50, 63, 13), (9, 37, 101, 1), (10, 1, 50, 5)

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize(
    "dtype",
    # In the interpreter fp32 runs the same code as float64.
    [torch.float64, slow_in_interpreter(torch.float32), torch.bfloat16],
    ids=lambda d: str(d).removeprefix("torch."),
)
each_shape = pytest.mark.parametrize(
    "shape",
    [shape if i < 2 else slow_in_interpreter(shape) for i, shape in enumerate(SHAPES)],
    ids=lambda s: "b{}-d{}-f{}-k{}".format(*s),
)


def device(backend: str) -> str:
    """Return the device that tests of a backend run on."""
    return "cuda" if backend == "triton" and CUDA else "cpu"


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal values that bf16 represents exactly, so that every dtype gets the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16).to(dtype)


def leaves(*tensors: Tensor, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Return copies that require grad and keep the layout."""
    return [t.detach().to(device, dtype).clone().requires_grad_() for t in tensors]


def assert_as_accurate(
    fast: Tensor, plain: Tensor | Sequence[Tensor], truth: Tensor, what: str
) -> None:
    """Assert that `fast` loses at most twice what plain PyTorch loses in the same dtype.

    One rounding of the largest value is allowed on top. A float64 result is held to 16 roundings.

    Args:
        fast: The result under test.
        plain: Plain PyTorch's result in the same dtype. Several, if the op's sums can be written in
            plain PyTorch in orders that lose differently: the worst of them counts. BLAS chooses
            the order inside a product, so a single one makes the tolerance depend on the processor.
        truth: The result of plain PyTorch in float64.
        what: A name for the message.
    """
    plains = [plain] if isinstance(plain, Tensor) else plain
    assert all(fast.dtype == p.dtype for p in plains) and fast.shape == truth.shape, what
    fast, truth, *plains = (t.detach().cpu() for t in (fast, truth, *plains))
    eps = torch.finfo(fast.dtype).eps * (16 if fast.dtype == torch.float64 else 1)
    scale = truth.abs().max().item() if truth.numel() else 0.0
    error = (fast.double() - truth).abs()
    allowed = max(2 * (p.double() - truth).abs().max().item() if p.numel() else 0.0 for p in plains)
    assert not (~(error <= allowed + eps * scale)).any(), (
        f"{what}: error {error.max():.3e}, allowed {allowed:.3e} + {eps * scale:.3e}"
    )


def tokens_first(W_enc: Tensor, d_pre: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of b_dec from one plain product in `dtype`, summed in fp32 or wider.

    An encoder's backward pass sums over the tokens first (`encoder_backward`), where autograd sums
    over the latents first; the two orders lose differently. This is the second of the `plain`
    results for `assert_as_accurate`.

    Args:
        W_enc: Encoder weights, shape [d_in, d_sae].
        d_pre: Exact gradients of the pre-activations, summed over the tokens, shape [d_sae].
        dtype: The dtype under test.
    """
    wide = torch.promote_types(dtype, torch.float32)
    return -(W_enc.to(dtype).to(wide) @ d_pre.to(wide)).to(dtype)


def sum_over_tokens(codes: Codes, weights: Tensor, table: Tensor) -> Tensor:
    """Return plain PyTorch's sum of weight * table[token] for each latent, term after term.

    A dense product adds in blocks and loses less on a long list of tokens. Shape [d_sae, d]; summed
    in fp32 or wider and rounded once.
    """
    wide = torch.promote_types(table.dtype, torch.float32)
    pairs = codes.by_latent()
    terms = weights.detach().flatten().to(wide)[:, None] * table.to(wide)[pairs.token_of_slot]
    rows = terms.new_zeros(codes.d_sae, table.shape[1])
    return rows.index_add_(0, codes.indices.flatten(), terms).to(table.dtype)


def active_sets(codes: Codes) -> list[set[int]]:
    """Return the latents with a non-zero value of each row, for codes with a fixed k."""
    return [
        set(row[value != 0].tolist())
        for row, value in zip(codes.indices.cpu(), codes.values.detach().cpu(), strict=True)
    ]


def ragged(lengths: list[int], d_sae: int, *, seed: int, dtype: torch.dtype) -> Codes:
    """Return codes with rows of the given lengths; latents repeat, sometimes within one row."""
    generator = torch.Generator().manual_seed(seed)
    nnz = sum(lengths)
    return Codes(
        normal(nnz, seed=seed + 1, dtype=dtype),
        torch.randint(d_sae, (nnz,), generator=generator),
        d_sae,
        torch.tensor([0, *lengths]).cumsum(0),
    )


def _poisoned(allocate):
    """Wrap a function that allocates tensors to fill them with NaN or the least integer."""

    def poisoned(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        elif tensor.dtype in (torch.int32, torch.int64):
            tensor.fill_(torch.iinfo(tensor.dtype).min)
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory from torch.empty with NaN, so that an output a kernel does not write shows."""
    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]:
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))

"""Helpers shared by the tests of the encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kernel_cases import BACKENDS, CUDA, DTYPES, INTERPRETER, normal

# In the interpreter fp32 runs the same code as float64, and takes as long.
RUN_DTYPES = [torch.float64, torch.bfloat16] if INTERPRETER else DTYPES
each_dtype = pytest.mark.parametrize(
    "dtype", RUN_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)
TRITON_ONLY = pytest.mark.parametrize("backend", [b for b in BACKENDS if b == "triton"])


def integers(*shape: int, seed: int, most: int) -> Tensor:
    """Return random integers from -most to most, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).double()


def problem(batch: int, d_in: int, d_sae: int) -> list[Tensor]:
    """Return x, W_enc, b_enc and b_dec of small integers.

    Pre-activations are exact in every dtype and order of summation, so every backend has the same
    slots. Many pre-activations equal a threshold or the edge of its window.
    """
    W_enc = integers(d_sae, d_in, seed=2, most=1)
    W_enc *= torch.rand(d_sae, d_in, generator=torch.Generator().manual_seed(3)) < 12 / d_in
    b_enc, b_dec = integers(d_sae, seed=4, most=3), integers(d_in, seed=5, most=2)
    return [integers(batch, d_in, seed=1, most=2), W_enc.t(), b_enc, b_dec]


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradients of `inputs` for random cotangents of dense [batch, d_sae] outputs."""
    cotangents = [
        normal(*out.shape, seed=7 + i).to(out.device, out.dtype) for i, out in enumerate(outputs)
    ]
    return list(torch.autograd.grad(outputs, inputs, cotangents))


@contextmanager
def forbid_sync() -> Iterator[None]:
    """Raise for every call that would wait for the device; on CPU, as if tensors were on CUDA."""

    def refuse(*_, **__):
        raise RuntimeError("this is a synchronizing call")

    if CUDA:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        yield
        torch.cuda.set_sync_debug_mode(mode)
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


def set_chunk_rows(rows: int, d_sae: int, dtype: torch.dtype, backend: str, monkeypatch) -> None:
    """Make the pre-activations come in chunks of `rows` rows."""
    if backend == "triton":
        size = rows * d_sae * dtype.itemsize
        monkeypatch.setattr("sae_kernels.gpu.pre_acts.CHUNK_BYTES", size)
        monkeypatch.setattr("sae_kernels.gpu.pre_acts.CHUNK_MIN_ROWS", 1)
    else:
        monkeypatch.setattr("sae_kernels.cpu.pre_acts.CHUNK_ELEMENTS", 1)
        monkeypatch.setattr("sae_kernels.cpu.pre_acts.CHUNK_MIN_ROWS", rows)


def assert_well_formed(codes, dtype: torch.dtype) -> None:
    """Assert dtypes, shapes, ranges, empty padding and distinct latents per row of ragged codes."""
    nnz = int(codes.offsets[-1])
    assert codes.values.dtype == dtype and codes.values.shape == codes.indices.shape
    assert codes.indices.dtype == codes.offsets.dtype == torch.int64
    assert codes.offsets[0] == 0 and (codes.offsets.diff() >= 0).all()
    assert ((codes.indices >= 0) & (codes.indices < codes.d_sae)).all()
    assert (codes.values[nnz:] == 0).all()
    positions = codes.by_latent().token_of_slot * codes.d_sae + codes.indices
    assert len(set(positions[:nnz].tolist())) == nnz, "a row has the same index twice"

"""What the tests of the threshold, gated and BatchTopK encoders share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kernel_cases import BACKENDS, CUDA, DTYPES, TRITON, normal

# In the interpreter fp32 takes the same way as float64, and as long.
RUN_DTYPES = [torch.float64, torch.bfloat16] if TRITON and not CUDA else DTYPES
each_dtype = pytest.mark.parametrize(
    "dtype", RUN_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)
TRITON_ONLY = pytest.mark.parametrize("backend", [b for b in BACKENDS if b == "triton"])


def integers(*shape: int, seed: int, most: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).double()


def problem(batch: int, d_in: int, d_sae: int) -> list[Tensor]:
    """x, W_enc, b_enc, b_dec: small integers. Pre-activations are exact in every dtype and order of
    summation, so slots are the same everywhere; many lie on a threshold or on its window's edge."""
    W_enc = integers(d_sae, d_in, seed=2, most=1)
    W_enc *= torch.rand(d_sae, d_in, generator=torch.Generator().manual_seed(3)) < 12 / d_in
    b_enc, b_dec = integers(d_sae, seed=4, most=3), integers(d_in, seed=5, most=2)
    return [integers(batch, d_in, seed=1, most=2), W_enc.t(), b_enc, b_dec]


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """With random cotangents of the dense [batch, d_sae] outputs."""
    cotangents = [
        normal(*out.shape, seed=7 + i).to(out.device, out.dtype) for i, out in enumerate(outputs)
    ]
    return list(torch.autograd.grad(outputs, inputs, cotangents))


@contextmanager
def forbid_waiting() -> Iterator[None]:
    """What would wait for the device raises; on CPU, what would do so for a CUDA tensor."""

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


def chunks_of(rows: int, d_sae: int, dtype: torch.dtype, backend: str, monkeypatch) -> None:
    if backend == "triton":
        size = rows * d_sae * dtype.itemsize
        monkeypatch.setattr("sae_kernels.gpu.pre_acts.CHUNK_BYTES", size)
        monkeypatch.setattr("sae_kernels.gpu.pre_acts.CHUNK_MIN_ROWS", 1)
    else:
        monkeypatch.setattr("sae_kernels.cpu.pre_acts.CHUNK_ELEMENTS", 1)
        monkeypatch.setattr("sae_kernels.cpu.pre_acts.CHUNK_MIN_ROWS", rows)


def assert_well_formed(codes, dtype: torch.dtype) -> None:
    nnz = int(codes.offsets[-1])
    assert codes.values.dtype == dtype and codes.values.shape == codes.indices.shape
    assert codes.indices.dtype == codes.offsets.dtype == torch.int64
    assert codes.offsets[0] == 0 and (codes.offsets.diff() >= 0).all()
    assert ((codes.indices >= 0) & (codes.indices < codes.d_sae)).all()
    assert (codes.values[nnz:] == 0).all()
    places = codes.by_latent().token_of_slot * codes.d_sae + codes.indices
    assert len(set(places[:nnz].tolist())) == nnz, "an index twice in a row"

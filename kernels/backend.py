"""Choose the implementation of an op, for each call."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Protocol

from torch import Tensor

from sae_kernels.pairs import Pairs

BACKENDS = ("auto", "torch", "triton", "reference")


@cache
def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # sys.modules["triton"] is None, which is how tests simulate its absence
        return False


def resolve(backend: str, tensor: Tensor) -> str:
    """Return the backend to run: "auto" is triton for a CUDA tensor and torch for any other.

    Raises:
        ValueError: The name is unknown, or triton cannot run here.
    """
    if backend == "auto":
        return "triton" if tensor.is_cuda and _has_triton() else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend == "triton":
        if not _has_triton():
            raise ValueError("backend='triton' needs the triton package; install it or use 'torch'")
        if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"backend='triton' needs a CUDA tensor, got one on {tensor.device}; use 'torch', "
                "or set TRITON_INTERPRET=1 before the first use to run the interpreter"
            )
    return backend


class PairSums(Protocol):
    """The sums over (token, latent) pairs that the backward passes consist of.

    `cpu.spmm` and `gpu.spmm` implement it. `weights` is [nnz], one number a slot.
    """

    def sum_latents(self, pairs: Pairs, weights: Tensor, table: Tensor) -> Tensor:
        """Return, for each token, the sum over its latents of weight * table[latent]."""
        ...

    def sum_tokens(self, pairs: Pairs, weights: Tensor, table: Tensor) -> Tensor:
        """Return, for each latent, the sum over its tokens of weight * table[token]."""
        ...

    def sum_weights(self, pairs: Pairs, weights: Tensor) -> Tensor:
        """Return the sum of the weights of each latent, [d_sae], fp32 or wider."""
        ...

    def dot_rows(self, pairs: Pairs, left: Tensor, table: Tensor) -> Tensor:
        """Return <left[token], table[latent]> for each pair: [nnz]."""
        ...


def pair_sums(backend: str) -> PairSums:
    """Return the module of sums over pairs for a resolved backend. Imports Triton on first use."""
    if backend == "triton":
        from sae_kernels.gpu import spmm
    else:
        from sae_kernels.cpu import spmm
    return spmm

"""Which implementation runs, decided per call."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from types import ModuleType

from torch import Tensor

BACKENDS = ("auto", "torch", "triton", "reference")


@cache
def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # a module set to None in sys.modules, which is how its absence is tried out
        return False


def resolve(backend: str, tensor: Tensor) -> str:
    """`auto` is triton for a CUDA tensor and torch elsewhere; any other name is taken at its word.

    Raises ValueError for an unknown name, and for triton where it cannot run.
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


def pair_sums(backend: str) -> ModuleType:
    """Return the module of sums over pairs for a resolved backend. Imports Triton on first use."""
    if backend == "triton":
        from sae_kernels.gpu import spmm
    else:
        from sae_kernels.cpu import spmm
    return spmm


def compaction(backend: str) -> ModuleType:
    """Return the module that turns pre-activations into ragged codes for a resolved backend."""
    if backend == "triton":
        from sae_kernels.gpu import encode_threshold
    else:
        from sae_kernels.cpu import encode_threshold
    return encode_threshold

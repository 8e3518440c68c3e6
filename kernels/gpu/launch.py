"""Helpers of every Triton launcher: the device of a tensor and the dtype of its sums."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton.language as tl
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Return a context in which Triton launches on the device of `tensor`.

    Triton launches on the current device, which may be another one.
    """
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return the dtype that sums are kept in: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32

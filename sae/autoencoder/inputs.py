"""Checks of what an SAE is made with, and of what its methods are called with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.argument_types import describe, shown
from sae.errors import UserError

describe(torch.dtype, "a dtype such as torch.float32", "dtypes")


def check_floats(name: str, x: Any, shape: str) -> None:
    """Raise UserError unless an argument is a floating-point tensor; `shape` says what it takes."""
    if not isinstance(x, Tensor):
        remedy = "give a tensor"
        if type(x).__module__ == "numpy":
            remedy = "convert it with torch.from_numpy to a tensor"
        raise UserError(f"{name}={shown(x)} is not a tensor; {remedy} {shape}")
    if not x.is_floating_point():
        raise UserError(f"{name} has dtype {x.dtype}; give floating-point numbers {shape}")


def check_parameters(d_in: int, d_out: int | None, dtype: torch.dtype) -> None:
    """Raise UserError unless an SAE can have parameters of these widths and this dtype."""
    for name, width in (("d_in", d_in), ("d_out", d_out)):
        if width is not None and width < 1:
            raise UserError(f"{name}={width}; give at least 1")
    if not dtype.is_floating_point:
        raise UserError(f"dtype={dtype} has no fractions; give one such as torch.float32")


def check_device(device: str | torch.device) -> None:
    """Raise UserError unless this machine has a device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        known = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu'"
        raise UserError(f"device={str(device)!r} is not on this machine; give {known}") from None

"""Checks of what the methods of an SAE are called with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.argument_types import shown
from sae.errors import UserError


def check_floats(name: str, x: Any, shape: str) -> None:
    """Raise UserError unless an argument is a floating-point tensor; `shape` says what it takes."""
    if not isinstance(x, Tensor):
        remedy = "give a tensor"
        if type(x).__module__ == "numpy":
            remedy = "convert it with torch.from_numpy to a tensor"
        raise UserError(f"{name}={shown(x)} is not a tensor; {remedy} {shape}")
    if not x.is_floating_point():
        raise UserError(f"{name} has dtype {x.dtype}; give floating-point numbers {shape}")


def check_device(device: str | torch.device) -> None:
    """Raise UserError unless this machine has a device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        known = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu'"
        raise UserError(f"device={str(device)!r} is not on this machine; give {known}") from None

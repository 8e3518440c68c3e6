"""Rows of norm 1, for optimisers that know nothing of them."""

from __future__ import annotations

import torch
from torch import Tensor


def remove_row_component(grad: Tensor, rows: Tensor) -> Tensor:
    """Each row of `grad` less its component along the same row of `rows`; both [n, d]."""
    tiny = torch.finfo(rows.dtype).tiny
    along = (grad * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True).clamp_min(tiny)
    return grad - along * rows


def normalize_rows_(rows: Tensor) -> Tensor:
    """`rows` [n, d], each divided by its norm in place; a row of zeros stays zero."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(norms.clamp_min(torch.finfo(rows.dtype).tiny))

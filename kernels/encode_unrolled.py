"""Sparse-coding iterations with learned steps and thresholds: LISTA (Gregor & LeCun 2010, eq. 3).

    pre = (x - b_dec) @ W_enc + b_enc,   z_0 = relu(pre),
    z_{t+1} = relu(z_t + steps[t] * (pre - z_t @ W_dict @ W_enc) - thetas[t]),   t < T.

x [batch, d_in], W_enc [d_in, d_sae], b_enc, steps[t] and thetas[t] [d_sae], b_dec [d_in], W_dict
[d_sae, d_in], all of one dtype. This is the paper's h_theta(W_e x + S z) with S = 1 - steps W_dict
W_enc of rank d_in. Every z is dense, but only for a bounded chunk of rows; the positive entries of
the last z are kept.

Backward: each chunk is computed again, with autograd. Saved for backward: the inputs, and the
positions of the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import resolve
from sae_kernels.codes import Codes
from sae_kernels.pairs import Pairs

# Elements of one z; the backward pass holds 4 T + 3 of them. A product with fewer than
# CHUNK_MIN_ROWS rows is bound by reading W_enc.
CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
CHUNK_MIN_ROWS = 128


def encode_unrolled(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dict: Tensor | None,
    steps: Sequence[Tensor],
    thetas: Sequence[Tensor],
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Codes:
    """Return the positive entries of z_T, as ragged codes; the module's docstring defines z_T.

    Waits for the device once per chunk of rows, for the number of slots. autocast has no effect.

    Args:
        x, W_enc, b_enc, b_dec: As in `encode_topk`.
        W_dict: The dictionary that reconstructs x from z, shape [d_sae, d_in]. None stands for the
            columns of W_enc, each divided by its squared norm, so that a single latent reproduces
            itself.
        steps, thetas: T tensors [d_sae] each; layers may share a tensor.
        backend: "reference" holds [batch, d_sae] for autograd; all others are plain PyTorch in
            chunks.

    Returns:
        Codes with values [nnz] > 0, differentiable once in every input.

    Raises:
        ValueError: The backend is unknown, or the numbers of steps and thetas differ.
    """
    if len(steps) != len(thetas):
        raise ValueError(
            f"{len(steps)} steps and {len(thetas)} thetas; give one of each for every layer"
        )
    d_sae = W_enc.shape[1]
    inputs = (x, W_enc, b_enc, W_dict, b_dec, *steps, *thetas)
    if resolve(backend, W_enc) == "reference":
        return reference.encode_unrolled(x, W_enc, b_enc, W_dict, steps, thetas, b_dec)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        value_parts, counts, positions = [], [], []
        for rows in _chunks(x, d_sae):
            z = _dense_code(x[rows], *inputs[1:])
            slots = z.flatten().nonzero().squeeze(1)
            counts.append((z != 0).sum(1))
            positions.append(slots)
            value_parts.append(z.flatten()[slots])
            del z
        values = torch.cat(value_parts)
        offsets = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
        indices = torch.cat(positions) % d_sae
    values = _Unrolled.apply(values, positions, *inputs)
    return Codes(values, indices, d_sae, offsets, _pairs=Pairs(indices, offsets, d_sae))


def _chunks(x: Tensor, d_sae: int) -> list[slice]:
    """Return runs of rows that cover the batch; an empty batch gets one run without rows."""
    elements = CHUNK_ELEMENTS["cuda" if x.is_cuda else "cpu"]
    size = max(elements // d_sae, CHUNK_MIN_ROWS)
    return [slice(start, start + size) for start in range(0, max(len(x), 1), size)]


def _dense_code(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dict: Tensor | None,
    b_dec: Tensor | None,
    *layers: Tensor,
) -> Tensor:
    """Return z_T, dense [rows, d_sae]. `layers` is T steps, then T thetas."""
    if W_dict is None:
        W_dict = (W_enc / W_enc.square().sum(0)).t()
    pre = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    z = pre.relu()
    half = len(layers) // 2
    for step, theta in zip(layers[:half], layers[half:], strict=True):
        z = (z + step * (pre - z @ W_dict @ W_enc) - theta).relu()
    return z


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, positions: list[Tensor], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.positions = positions
        ctx.mark_dirty(values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with torch.autocast(grad.device.type, enabled=False):
            return None, None, *_backward(ctx, grad)


def _backward(ctx, grad: Tensor) -> list[Tensor | None]:
    """Return the gradients of the inputs, each None if it is not needed."""
    inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[2:]
    # Each list entry becomes a leaf of its own; autograd adds them up for a tensor that several
    # layers share.
    leaves: list[Any] = [
        None if t is None else t.detach().requires_grad_(need)
        for t, need in zip(inputs, needs, strict=True)
    ]
    x, *others = leaves
    needed = [t for t, need in zip(others, needs[1:], strict=True) if need]
    sums: list[Tensor | None] = [None] * len(needed)
    d_x, first = [], 0
    for rows, slots in zip(_chunks(x, others[0].shape[1]), ctx.positions, strict=True):
        part = x.detach()[rows].requires_grad_(needs[0])
        with torch.enable_grad():
            z = _dense_code(part, *others)
        d_z = torch.zeros_like(z)
        d_z.view(-1)[slots] = grad[first : first + len(slots)]
        first += len(slots)
        grads = list(
            torch.autograd.grad(z, [part] * needs[0] + needed, d_z, materialize_grads=True)
        )
        d_x += grads[:1] if needs[0] else []
        grads = grads[needs[0] :]
        sums = [g if s is None else s + g for s, g in zip(sums, grads, strict=True)]
        del z, d_z, grads
    summed = iter(sums)
    d_others = [next(summed) if need else None for need in needs[1:]]
    return [torch.cat(d_x) if needs[0] else None, *d_others]

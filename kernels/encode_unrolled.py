"""Iterations of sparse coding with learnt steps and thresholds: LISTA (Gregor & LeCun 2010, eq. 3).

    pre = (x - b_dec) @ W_enc + b_enc,   z_0 = relu(pre),
    z_{t+1} = relu(z_t + steps[t] * (pre - z_t @ W_dict @ W_enc) - thetas[t]),   t < T.

x [batch, d_in], W_enc [d_in, d_sae], b_enc, steps[t] and thetas[t] [d_sae], b_dec [d_in], W_dict
[d_sae, d_in], all of one dtype. This is the paper's h_theta(W_e x + S z) with S = 1 - steps W_dict
W_enc of rank d_in. Every z is dense, for a bounded chunk of rows only; of a chunk the positive
entries of the last stay.

Backward: each chunk is computed again, with autograd. Saved: the inputs, and where the slots are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import resolve
from sae_kernels.codes import Codes
from sae_kernels.pairs import Pairs

# Of one z; the backward holds 4 T + 3 of them. A product that reads W_enc once for fewer than
# CHUNK_MIN_ROWS rows is bound by that.
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
    """The positive entries of z_T; see the module's docstring.

    W_dict [d_sae, d_in] rebuilds x from z; None stands for W_enc's columns, each divided by the
    square of its norm, so that one latent alone gives itself back. steps and thetas: T tensors
    [d_sae] each, at times the same one. Returns ragged Codes, values [nnz] > 0, differentiable once
    in every input. Waits for the device, once a chunk of rows, for the number of slots. autocast
    has no effect.

    backend: "reference" keeps [batch, d_sae] whole for autograd; the others are all plain torch in
    chunks. Raises ValueError for an unknown backend, and for as many steps as there are no thetas.
    """
    if len(steps) != len(thetas):
        raise ValueError(f"{len(steps)} steps and {len(thetas)} thetas; give one of each a layer")
    d_sae = W_enc.shape[1]
    inputs = (x, W_enc, b_enc, W_dict, b_dec, *steps, *thetas)
    if resolve(backend, W_enc) == "reference":
        return reference.encode_unrolled(x, W_enc, b_enc, W_dict, steps, thetas, b_dec)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        found, counts, chosen = [], [], []
        for rows in _chunks(x, d_sae):
            z = _last(x[rows], *inputs[1:])
            slots = z.flatten().nonzero().squeeze(1)
            counts.append((z != 0).sum(1))
            chosen.append(slots)
            found.append(z.flatten()[slots])
            del z
        values = torch.cat(found)
        offsets = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
        indices = torch.cat(chosen) % d_sae
    values = _Unrolled.apply(values, chosen, *inputs)
    return Codes(values, indices, d_sae, offsets, _pairs=Pairs(indices, offsets, d_sae))


def _chunks(x: Tensor, d_sae: int) -> list[slice]:
    """Runs of rows that cover the batch; one without rows where there is none."""
    elements = CHUNK_ELEMENTS["cuda" if x.is_cuda else "cpu"]
    size = max(elements // d_sae, CHUNK_MIN_ROWS)
    return [slice(at, at + size) for at in range(0, max(len(x), 1), size)]


def _last(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dict: Tensor | None,
    b_dec: Tensor | None,
    *layers: Tensor,
) -> Tensor:
    """z_T, dense [rows, d_sae]; layers: T steps, then T thetas."""
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
    def forward(ctx, values: Tensor, chosen: list[Tensor], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.chosen = chosen
        ctx.mark_dirty(values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with torch.autocast(grad.device.type, enabled=False):
            return None, None, *_backward(ctx, grad)


def _backward(ctx, grad: Tensor) -> list[Tensor | None]:
    """Gradients of the inputs, each None where not needed."""
    inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[2:]
    # A leaf for each place in the list: a tensor that several layers share gets their sum.
    x, *others = (
        t if t is None else t.detach().requires_grad_(need)
        for t, need in zip(inputs, needs, strict=True)
    )
    wanted = [t for t, need in zip(others, needs[1:], strict=True) if need]
    sums: list[Tensor | None] = [None] * len(wanted)
    d_x, first = [], 0
    for rows, slots in zip(_chunks(x, others[0].shape[1]), ctx.chosen, strict=True):
        part = x.detach()[rows].requires_grad_(needs[0])
        with torch.enable_grad():
            z = _last(part, *others)
        of_z = torch.zeros_like(z)
        of_z.view(-1)[slots] = grad[first : first + len(slots)]
        first += len(slots)
        made = list(
            torch.autograd.grad(z, [part] * needs[0] + wanted, of_z, materialize_grads=True)
        )
        d_x += made[:1] if needs[0] else []
        made = made[needs[0] :]
        sums = [m if s is None else s + m for s, m in zip(sums, made, strict=True)]
        del z, of_z, made
    of_others = iter(sums)
    whole = [next(of_others) if need else None for need in needs[1:]]
    return [torch.cat(d_x) if needs[0] else None, *whole]

"""Every op in dense, plain PyTorch: the reference that the fast paths are tested against.

There is no Triton and no hand-written backward pass here; autograd differentiates the code. Every
floating-point dtype works, float64 included. Memory use is that of the dense [batch, d_sae].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sae_kernels.codes import Codes
from sae_kernels.row_grads import RowGrads


def encode_topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_dec: Tensor | None = None
) -> Codes:
    """Return relu of the k largest pre-activations of each row; ties go to the lowest index.

    x [batch, d_in], W_enc [d_in, d_sae], b_enc [d_sae], b_dec [d_in]. The slots of a row are in
    descending order of value.
    """
    centred = x if b_dec is None else x - b_dec
    pre_acts = centred @ W_enc + b_enc
    indices = pre_acts.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    values = pre_acts.gather(1, indices).relu()
    return Codes(values, indices.contiguous(), W_enc.shape[1])


def encode_dense_rule(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    select: Callable[[Tensor], tuple[Tensor, Tensor]],
    b_dec: Tensor | None = None,
) -> Codes:
    """Return pre at the indices that select(pre) takes of each row, or 0 where its value is 0."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    values, indices = select(pre_acts.detach())
    values = torch.where(values != 0, pre_acts.gather(1, indices), 0)
    return Codes(values, indices, W_enc.shape[1])


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Return acts @ W_dec + b_dec; acts are dense, W_dec is [d_sae, d_in], b_dec [d_in]."""
    return codes.to_dense() @ W_dec + b_dec


def dense_gradient(shape: torch.Size, grad: Tensor | None, parts: RowGrads | None) -> Tensor:
    """Return the dense gradient [d_sae, d]: `grad` plus everything in `parts`.

    Raises ValueError if there is neither.
    """
    parts = parts or RowGrads()
    if grad is not None:
        dense = grad.clone()
    elif parts:
        like = parts.pair_parts[0].table if parts.pair_parts else parts.row_parts[0].rows
        dense = like.new_zeros(shape)
    else:
        raise ValueError("no gradient: give grad, parts, or both")
    for pairs, weights, table in parts.pair_parts:
        rows = weights[:, None] * table[pairs.token_of_slot]
        dense.index_add_(0, pairs.indices.flatten(), rows)
    for latents, rows in parts.row_parts:
        dense.index_add_(0, latents, rows)
    return dense


@torch.no_grad()
def adam_rows(
    param: Tensor,
    grad: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool = False,
    parts: RowGrads | None = None,
    scale: Tensor | None = None,
    master: Tensor | None = None,
    seed: int = 0,
    lazy: bool = False,
) -> None:
    """Take one Adam step in place (Kingma & Ba 2015, eps outside the root); see `sae_kernels.adam`.

    All tensors are [rows, width]. Moments are rounded to nearest; the seed has no effect.
    """
    rows = param if master is None else master
    grad = dense_gradient(param.shape, grad, parts)
    touched = (grad != 0).any(1, keepdim=True) if lazy else torch.ones_like(grad[:, :1]).bool()
    if scale is not None:
        grad = grad * scale
    if unit_norm:
        along = (grad * rows).sum(1, keepdim=True) / (rows * rows).sum(1, keepdim=True)
        grad = grad - along * rows
    mean = beta1 * exp_avg + (1 - beta1) * grad
    square = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    root = (square / (1 - beta2**step)).sqrt()
    updated = rows - lr * (mean / (1 - beta1**step)) / (root + eps)
    if unit_norm:
        updated = updated / updated.norm(dim=1, keepdim=True)
    for old, new in ((exp_avg, mean), (exp_avg_sq, square), (rows, updated)):
        old.copy_(torch.where(touched, new, old))
    if master is not None:
        param.copy_(master)


def aux_error(
    x: Tensor,
    residual: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    latents: Tensor,
    k: int,
    b_dec: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return sum |residual - acts @ W_dec|^2; acts are the k largest relu(pre) of `latents`."""
    centred = x if b_dec is None else x - b_dec
    acts = (centred @ W_enc[:, latents] + b_enc[latents]).relu()
    if mask is not None:
        acts = acts * mask
    largest = acts.topk(min(k, len(latents)), dim=1)
    acts = torch.zeros_like(acts).scatter(1, largest.indices, largest.values)
    acc_dtype = torch.promote_types(x.dtype, torch.float32)
    return (residual - acts @ W_dec[latents]).to(acc_dtype).square().sum()


def pre_act_loss(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor,
    latents: Tensor,
    b_dec: Tensor | None = None,
) -> Tensor:
    """Return relu(theta - pre) of `latents`, summed over the batch in fp32 or wider: [n]."""
    centred = x if b_dec is None else x - b_dec
    pre_acts = centred @ W_enc[:, latents] + b_enc[latents]
    acc_dtype = torch.promote_types(x.dtype, torch.float32)
    return (theta.to(acc_dtype) - pre_acts.to(acc_dtype)).relu().sum(0)


def decode_error(
    codes: Codes, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return target - x_hat as a constant, and the sum of its squares in fp32 or wider."""
    residual = target - decode(codes, W_dec, b_dec)
    acc_dtype = torch.promote_types(residual.dtype, torch.float32)
    return residual.detach(), residual.to(acc_dtype).square().sum()


def decode_prefixes(
    codes: Codes, levels: Tensor, n_levels: int, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Tensor:
    """Return [n_levels]: entry i is the squared error if only slots with level <= i count."""
    values = [torch.where(levels <= level, codes.values, 0) for level in range(n_levels)]
    prefixes = [Codes(v, codes.indices, codes.d_sae, codes.offsets) for v in values]
    return torch.stack([decode_error(prefix, W_dec, b_dec, target)[1] for prefix in prefixes])


def _ragged_codes(is_slot: Tensor, *dense: Tensor) -> list[Codes]:
    """Return, for each dense tensor, its values where is_slot [batch, d_sae] is true, as codes."""
    d_sae = is_slot.shape[1]
    positions = is_slot.flatten().nonzero().squeeze(1)
    offsets = torch.nn.functional.pad(is_slot.sum(1).cumsum(0), (1, 0))
    return [Codes(d.flatten()[positions], positions % d_sae, d_sae, offsets) for d in dense]


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None = None,
    threshold: Tensor | None = None,
) -> Codes:
    """Return pre where it exceeds max(threshold, 0); no threshold counts as 0."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    theta = 0 if threshold is None else threshold.detach().clamp(min=0)
    return _ragged_codes(~(pre_acts <= theta), pre_acts)[0]


def encode_jumprelu(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor,
    b_dec: Tensor | None,
    bandwidth: float,
) -> tuple[Codes, Tensor]:
    """Return the JumpReLU codes and their gates.

    The gradient of the threshold is that of a line of slope -K / bandwidth through each step; K is
    1 in a window of that width around the threshold, else 0.
    """
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    theta = threshold.detach().clamp(min=0)
    fires = ~(pre_acts <= theta)
    floor, ceiling = theta - bandwidth / 2, theta + bandwidth / 2
    in_window = (pre_acts > floor) & (pre_acts < ceiling)
    line = torch.where(in_window, (threshold.detach() - threshold) / bandwidth, 0)
    acts = torch.where(fires, pre_acts, 0) + theta * line
    dense = [d.to(x.dtype) for d in (acts, fires + line)]
    codes, gates = _ragged_codes(fires | in_window, *dense)
    return codes, gates.values


def encode_gated(
    x: Tensor,
    W_enc: Tensor,
    b_gate: Tensor,
    b_mag: Tensor,
    r_mag: Tensor,
    b_dec: Tensor | None = None,
) -> tuple[Codes, Codes]:
    """Return 1[pi_gate > 0] * relu(pi_mag) and relu(pi_gate), with slots where pi_gate > 0."""
    h = (x if b_dec is None else x - b_dec) @ W_enc
    pi_gate, pi_mag = h + b_gate, h * r_mag.exp() + b_mag
    codes, gates = _ragged_codes(~(pi_gate <= 0), pi_mag.relu(), pi_gate.relu())
    return codes, gates


def encode_unrolled(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dict: Tensor | None,
    steps: Sequence[Tensor],
    thetas: Sequence[Tensor],
    b_dec: Tensor | None = None,
) -> Codes:
    """Return z_T; z_0 = relu(pre), z_{t+1} = relu(z_t + step (pre - z_t W_dict W_enc) - theta)."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    if W_dict is None:
        W_dict = W_enc.t() / W_enc.norm(dim=0).square()[:, None]
    z = pre_acts.relu()
    for step, theta in zip(steps, thetas, strict=True):
        z = (z + (pre_acts - (z @ W_dict) @ W_enc) * step - theta).relu()
    return _ragged_codes(~(z <= 0), z)[0]


def encode_batch_topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_dec: Tensor | None = None
) -> Codes:
    """Return relu of the k * batch largest pre-activations of the batch.

    Ties go to the lowest (row, column). If fewer are positive, the last slots are padding.
    """
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    count = k * len(x)
    order = pre_acts.detach().flatten().sort(descending=True, stable=True).indices[:count]
    selected = torch.zeros_like(pre_acts, dtype=torch.bool).view(-1).index_fill_(0, order, True)
    (codes,) = _ragged_codes(selected.view_as(pre_acts) & ~(pre_acts <= 0), pre_acts)
    missing = (0, count - len(codes.indices))
    values, indices = (torch.nn.functional.pad(t, missing) for t in (codes.values, codes.indices))
    return Codes(values, indices, codes.d_sae, codes.offsets)

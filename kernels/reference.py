"""Every op, dense and plain: the truth the fast paths are tested against.

No Triton, no hand-written backward: autograd differentiates what is written here. Any floating
dtype, float64 included; memory is that of the dense [batch, d_sae].
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
    """relu of the k largest pre-activations of each row; ties go to the lowest index.

    x [batch, d_in], W_enc [d_in, d_sae], b_enc [d_sae], b_dec [d_in]. Slots in
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
    choose: Callable[[Tensor], tuple[Tensor, Tensor]],
    b_dec: Tensor | None = None,
) -> Codes:
    """pre at the indices that choose(pre) takes of each row; 0 where its value is."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    values, indices = choose(pre_acts.detach())
    values = torch.where(values != 0, pre_acts.gather(1, indices), 0)
    return Codes(values, indices, W_enc.shape[1])


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """acts @ W_dec + b_dec, acts dense [batch, d_sae], W_dec [d_sae, d_in], b_dec [d_in]."""
    return codes.to_dense() @ W_dec + b_dec


def gradient(shape: torch.Size, grad: Tensor | None, parts: RowGrads | None) -> Tensor:
    """[d_sae, d]: a gradient in parts, multiplied out."""
    some = grad if grad is not None else (parts.pair_parts or parts.row_parts)[0][-1]
    whole = some.new_zeros(shape) if grad is None else grad.clone()
    for pairs, weights, table in parts.pair_parts if parts else ():
        rows = weights[:, None] * table[pairs.token_of_slot]
        whole.index_add_(0, pairs.indices.flatten(), rows)
    for latents, rows in parts.row_parts if parts else ():
        whole.index_add_(0, latents, rows)
    return whole


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
    """Adam (Kingma & Ba 2015, eps outside the root) in place; see `sae_kernels.adam`.

    All tensors [rows, width]. Moments are rounded to nearest, whatever the seed.
    """
    rows = param if master is None else master
    grad = gradient(param.shape, grad, parts)
    touched = (grad != 0).any(1, keepdim=True) if lazy else torch.ones_like(grad[:, :1]).bool()
    if scale is not None:
        grad = grad * scale
    if unit_norm:
        along = (grad * rows).sum(1, keepdim=True) / (rows * rows).sum(1, keepdim=True)
        grad = grad - along * rows
    mean = beta1 * exp_avg + (1 - beta1) * grad
    square = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    root = (square / (1 - beta2**step)).sqrt()
    moved = rows - lr * (mean / (1 - beta1**step)) / (root + eps)
    if unit_norm:
        moved = moved / moved.norm(dim=1, keepdim=True)
    for old, new in ((exp_avg, mean), (exp_avg_sq, square), (rows, moved)):
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
    """sum |residual - acts @ W_dec|^2; acts: the k largest relu'd pre-acts of `latents`."""
    centred = x if b_dec is None else x - b_dec
    acts = (centred @ W_enc[:, latents] + b_enc[latents]).relu()
    if mask is not None:
        acts = acts * mask
    kept = acts.topk(min(k, len(latents)), dim=1)
    acts = torch.zeros_like(acts).scatter(1, kept.indices, kept.values)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (residual - acts @ W_dec[latents]).to(wide).square().sum()


def pre_act_loss(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor,
    latents: Tensor,
    b_dec: Tensor | None = None,
) -> Tensor:
    """[n]: relu(theta - pre) of `latents`, summed over the batch in at least fp32."""
    centred = x if b_dec is None else x - b_dec
    pre_acts = centred @ W_enc[:, latents] + b_enc[latents]
    wide = torch.promote_types(x.dtype, torch.float32)
    return (theta.to(wide) - pre_acts.to(wide)).relu().sum(0)


def decode_error(
    codes: Codes, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """target - x_hat, a constant, and the sum of its squares in at least fp32."""
    residual = target - decode(codes, W_dec, b_dec)
    wide = torch.promote_types(residual.dtype, torch.float32)
    return residual.detach(), residual.to(wide).square().sum()


def decode_prefixes(
    codes: Codes, levels: Tensor, n_levels: int, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Tensor:
    """[n_levels]: entry i is decode_error's sum when only the slots with level <= i count."""
    kept = [torch.where(levels <= level, codes.values, 0) for level in range(n_levels)]
    prefixes = [Codes(values, codes.indices, codes.d_sae, codes.offsets) for values in kept]
    return torch.stack([decode_error(some, W_dec, b_dec, target)[1] for some in prefixes])


def _listed(is_slot: Tensor, *dense: Tensor) -> list[Codes]:
    """Ragged codes of what is_slot [batch, d_sae] marks, with the values of each dense tensor."""
    d_sae = is_slot.shape[1]
    places = is_slot.flatten().nonzero().squeeze(1)
    offsets = torch.nn.functional.pad(is_slot.sum(1).cumsum(0), (1, 0))
    return [Codes(d.flatten()[places], places % d_sae, d_sae, offsets) for d in dense]


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None = None,
    threshold: Tensor | None = None,
) -> Codes:
    """pre where it exceeds max(threshold, 0); no threshold is 0."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    theta = 0 if threshold is None else threshold.detach().clamp(min=0)
    return _listed(~(pre_acts <= theta), pre_acts)[0]


def encode_jumprelu(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor,
    b_dec: Tensor | None,
    bandwidth: float,
) -> tuple[Codes, Tensor]:
    """JumpReLU and its gates; the threshold's gradient is that of a line of slope -K / bandwidth
    through each step, K being the rectangle of that width around the threshold."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    theta = threshold.detach().clamp(min=0)
    fires = ~(pre_acts <= theta)
    floor, ceiling = theta - bandwidth / 2, theta + bandwidth / 2
    in_window = (pre_acts > floor) & (pre_acts < ceiling)
    line = torch.where(in_window, (threshold.detach() - threshold) / bandwidth, 0)
    acts = torch.where(fires, pre_acts, 0) + theta * line
    dense = [d.to(x.dtype) for d in (acts, fires + line)]
    codes, gates = _listed(fires | in_window, *dense)
    return codes, gates.values


def encode_gated(
    x: Tensor,
    W_enc: Tensor,
    b_gate: Tensor,
    b_mag: Tensor,
    r_mag: Tensor,
    b_dec: Tensor | None = None,
) -> tuple[Codes, Codes]:
    """1[pi_gate > 0] * relu(pi_mag), and relu(pi_gate), listed where pi_gate > 0."""
    h = (x if b_dec is None else x - b_dec) @ W_enc
    pi_gate, pi_mag = h + b_gate, h * r_mag.exp() + b_mag
    codes, gates = _listed(~(pi_gate <= 0), pi_mag.relu(), pi_gate.relu())
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
    """z_0 = relu(pre), z_{t+1} = relu(z_t + step (pre - z_t W_dict W_enc) - theta)."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    if W_dict is None:
        W_dict = W_enc.t() / W_enc.norm(dim=0).square()[:, None]
    z = pre_acts.relu()
    for step, theta in zip(steps, thetas, strict=True):
        z = (z + (pre_acts - (z @ W_dict) @ W_enc) * step - theta).relu()
    return _listed(~(z <= 0), z)[0]


def encode_batch_topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_dec: Tensor | None = None
) -> Codes:
    """relu of the k * batch largest pre-activations of the batch; ties go to the lowest (row,
    column). Where fewer are positive the last slots are padding."""
    pre_acts = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    count = k * len(x)
    order = pre_acts.detach().flatten().sort(descending=True, stable=True).indices[:count]
    kept = torch.zeros_like(pre_acts, dtype=torch.bool).view(-1).index_fill_(0, order, True)
    (codes,) = _listed(kept.view_as(pre_acts) & ~(pre_acts <= 0), pre_acts)
    missing = (0, count - len(codes.indices))
    values, indices = (torch.nn.functional.pad(t, missing) for t in (codes.values, codes.indices))
    return Codes(values, indices, codes.d_sae, codes.offsets)

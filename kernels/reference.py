"""Every op, dense and plain: the truth the fast paths are tested against.

No Triton, no hand-written backward: autograd differentiates what is written here. Any floating
dtype, float64 included; memory is that of the dense [batch, d_sae].
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.codes import Codes


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


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """acts @ W_dec + b_dec, acts dense [batch, d_sae], W_dec [d_sae, d_in], b_dec [d_in]."""
    return codes.to_dense() @ W_dec + b_dec


@torch.no_grad()
def adam_rows_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool = False,
) -> None:
    """Adam (Kingma & Ba 2015, eps outside the root) in place; see `sae_kernels.adam`."""
    if unit_norm:
        along = (grad * param).sum(1, keepdim=True) / (param * param).sum(1, keepdim=True)
        grad = grad - along * param
    exp_avg.copy_(beta1 * exp_avg + (1 - beta1) * grad)
    exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * grad * grad)
    mean = exp_avg / (1 - beta1**step)
    root = (exp_avg_sq / (1 - beta2**step)).sqrt()
    param.sub_(lr * mean / (root + eps))
    if unit_norm:
        param.div_(param.norm(dim=1, keepdim=True))

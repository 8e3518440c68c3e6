"""Fold the centering and scaling of activations into the weights of an SAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@torch.no_grad()
def fold(
    sae: SAE, scale: Mapping[str, float] | float, shift: Mapping[str, Tensor] | None = None
) -> None:
    """Change the weights of `sae` so that it takes activations instead of scaled and shifted ones.

    Args:
        sae: An SAE that takes `scale * activation + shift`.
        scale: One scale for all hooks, or one per hook.
        shift: What is added to the scaled activations of each hook, [width]; None for nothing.
    """
    if shift is not None:
        fold_shift(sae, shift)
    in_scale, out_scale = column_scales(sae, scale)
    # Every rule is homogeneous: if x, and all that is added to or compared with
    # pre-activations, is divided by `unit`, then so are the codes.
    unit = in_scale[0] if bool((in_scale == in_scale[0]).all()) else in_scale.new_ones(())
    for latents, group_scale in zip(sae.groups(), in_scale.split(sae.d_in), strict=True):
        sae.W_enc[:, latents] *= (group_scale / unit)[:, None].to(sae.W_enc)
    sae.W_dec.mul_((unit / out_scale).to(sae.W_dec))
    sae.b_enc.div_(unit.to(sae.b_enc))
    sae.b_dec.div_(out_scale.to(sae.b_dec))
    for name, extra in sae.sparsity.extra_params().items():
        if extra.power:
            tensor = cast(Tensor, getattr(sae, name))
            tensor /= unit.to(tensor)
    if sae.site.skip:
        sae.W_skip *= (in_scale[:, None] / out_scale).to(sae.W_skip)


def fold_shift(sae: SAE, shift: Mapping[str, Tensor]) -> None:
    """Change the biases of `sae` so that it takes activations before `shift` is added to them."""
    # In float64, because a shift may be far larger than what varies.
    x_shift, y_shift = sae.site.pair({hook: part[None].double() for hook, part in shift.items()})
    b_dec = sae.b_dec.double() - y_shift[0]
    if sae.site.skip:
        b_dec += x_shift[0] @ sae.W_skip.double()
    sae.b_dec.copy_(b_dec)
    if sae.site.predicts_input:
        return  # b_dec is subtracted from x
    for latents, part in zip(sae.groups(), x_shift[0].split(sae.d_in), strict=True):
        moved = part @ sae.W_enc[:, latents].double()
        sae.sparsity.shift_pre_acts(sae.weights().latents(latents), moved.to(sae.b_enc))


def column_scales(sae: SAE, scale: Mapping[str, float] | float) -> tuple[Tensor, Tensor]:
    """Return the scale of every column of x and of y, float64."""
    if isinstance(scale, Mapping):
        in_scale, out_scale = sae.site.column_scales(scale)
        return in_scale.to(sae.b_dec.device), out_scale.to(sae.b_dec.device)
    value = sae.b_dec.new_tensor(scale, dtype=torch.float64)
    return value.expand(sae.d_in * sae.site.groups), value.expand(sae.d_out)

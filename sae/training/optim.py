"""Adam through `sae_kernels`, row by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sae_kernels.adam import adam_rows_


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015, without weight decay), with unit-norm rows where a group asks for it.

    Groups with `unit_norm=True` hold matrices whose rows are directions: the part of the gradient
    along a row is removed before the moments see it, and rows return to norm 1 after the step.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "unit_norm": False})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param)
                    state["exp_avg_sq"] = torch.zeros_like(param)
                state["step"] += 1
                adam_rows_(
                    param,
                    param.grad,
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    step=state["step"],
                    lr=group["lr"],
                    beta1=beta1,
                    beta2=beta2,
                    eps=group["eps"],
                    unit_norm=group["unit_norm"],
                )
        return loss

"""Sign descent that averages its iterates in place of a learning-rate schedule."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.training.row_adam import normalize_rows_, remove_row_component, restore_dtypes


class ScheduleFreeSign(torch.optim.Optimizer):
    """Schedule-free sign descent (Defazio et al. 2024, arXiv 2405.15682; sparsify's default).

    Gradients g are taken at y, the value of the parameters. Two more sequences, z and x, are in the
    state, in fp32:
        z <- z - lr sign(g(y)),   x <- x + (z - x) / t,   y <- (1 - momentum) z + momentum x.
    x is the result of training; `averaged` returns an SAE with x in place of y. In groups with
    `unit_norm` the component of g along a row is removed before its sign is taken, and rows of z, x
    and y have norm 1.

    Args:
        params: Parameter groups, as in torch.optim.
        lr: Learning rate.
        momentum: Position of y between z (0) and x (1).
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "unit_norm": False})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_dtypes(self, state_dict)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step(param, group)
        return loss

    def _step(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        wide = torch.promote_types(param.dtype, torch.float32)
        if not state:
            state["step"] = 0
            state["z"] = param.detach().to(wide, copy=True)
            state["x"] = state["z"].clone()
        state["step"] += 1
        z, x = state["z"], state["x"]
        assert param.grad is not None
        grad = param.grad.to(wide)
        if group["unit_norm"]:
            grad = remove_row_component(grad, param.to(wide))
        z.sub_(grad.sign(), alpha=group["lr"])
        if group["unit_norm"]:
            normalize_rows_(z)
        x.lerp_(z, 1 / state["step"])
        if group["unit_norm"]:
            normalize_rows_(x)
        y = z.lerp(x, group["momentum"])
        param.copy_(normalize_rows_(y) if group["unit_norm"] else y)


@torch.no_grad()
def averaged(sae: SAE, optimizer: torch.optim.Optimizer) -> SAE:
    """Return the SAE to validate and export.

    It is a copy with x in place of y if `optimizer` is schedule-free and has made a step, and `sae`
    itself otherwise.
    """
    if not isinstance(optimizer, ScheduleFreeSign) or not optimizer.state:
        return sae
    average = copy.deepcopy(sae)
    for name, param in sae.named_parameters():
        if state := optimizer.state.get(param):
            getattr(average, name).copy_(state["x"])
    average.project()
    return average

"""Adam through `sae_kernels`, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sae_kernels.adam import adam_rows_, hyper_values, square_norm
from sae_kernels.row_grads import RowGrads


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015), with unit-norm rows where a group asks for it, and decoupled weight
    decay (Loshchilov & Hutter 2019) where a group's `weight_decay` is above 0.

    Groups with `unit_norm=True` hold matrices whose rows are directions: the part of the gradient
    along a row is removed before the moments see it, and rows return to norm 1 after the step.
    A half-precision parameter is the rounded copy of an fp32 master, which lies in the state.
    Matrices get their gradient in parts (`sae_kernels.row_grads`): what `encode` and `decode` know
    of it never becomes a tensor as large as the parameter.

    Args:
        params: groups, as in torch.optim.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        clip_norm: the most that the norm of the whole gradient, over all groups, may be; it is
            scaled down to that, as torch.nn.utils.clip_grad_norm_ does. None: never.
        moments: dtype of the moments; fp32 or wider when left out. bfloat16 saves half of their
            memory; rounding is stochastic.
        seed: of that rounding.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        clip_norm: float | None = None,
        moments: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        groups = {"lr": lr, "betas": betas, "eps": eps, "unit_norm": False, "weight_decay": 0.0}
        super().__init__(params, groups)
        self.clip_norm, self.moments, self.seed = clip_norm, moments, seed
        # Of a recorded step (`training.graph`): what replays it, and per group what it reads.
        self.replay: Callable[[], None] | None = None
        self.hyper: list[Tensor] = []
        for param in self._params():
            if param.ndim == 2:
                param.row_grads = RowGrads()

    def _params(self) -> Iterable[Tensor]:
        return (param for group in self.param_groups for param in group["params"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for param in self._params():
            if parts := getattr(param, "row_grads", None):
                parts.clear()

    def _first_state(self, param: Tensor) -> dict[str, Any]:
        wide = torch.promote_types(param.dtype, torch.float32)
        moments = self.moments or wide
        state: dict[str, Any] = {
            "step": 0,
            "exp_avg": torch.zeros_like(param, dtype=moments),
            "exp_avg_sq": torch.zeros_like(param, dtype=moments),
        }
        if wide != param.dtype:
            state["master"] = param.detach().to(wide, copy=True)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_dtypes(self, state_dict)

    @torch.no_grad()
    def clip_factor(self) -> Tensor | None:
        """What every gradient is multiplied by: 0-d, on the device; None without `clip_norm`."""
        if self.clip_norm is None:
            return None
        squares = [
            square_norm(param, param.grad, getattr(param, "row_grads", None))
            for param in self._params()
            if _has_gradient(param)
        ]
        if not squares:
            return None
        norm = torch.stack([s.double() for s in squares]).sum().sqrt()
        return (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.advance()
        (self.replay or self.apply)()
        return loss

    def advance(self) -> None:
        """Count one step, on the host and, for a recorded step, on the device."""
        for number, group in enumerate(self.param_groups):
            for param in group["params"]:
                if _has_gradient(param) or self.replay:
                    state = self.state[param]
                    if not state:
                        state.update(self._first_state(param))
                    state["step"] += 1
                    step = state["step"]
            if self.hyper:
                values = (
                    *hyper_values(step, group["lr"], *group["betas"], group["eps"]),
                    1 - group["lr"] * group["weight_decay"],
                )
                pinned = torch.tensor(values, dtype=torch.float64).pin_memory()
                self.hyper[number].copy_(pinned, non_blocking=True)

    @torch.no_grad()
    def apply(self) -> None:
        """Update every parameter that has a gradient. Nothing here waits for the device."""
        scale = self.clip_factor()
        for number, group in enumerate(self.param_groups):
            beta1, beta2 = group["betas"]
            for place, param in enumerate(group["params"]):
                if not _has_gradient(param):
                    continue
                state = self.state[param]
                if group["weight_decay"]:
                    decay = 1 - group["lr"] * group["weight_decay"]
                    state.get("master", param).mul_(self.hyper[number][6] if self.hyper else decay)
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
                    row_grads=getattr(param, "row_grads", None),
                    scale=scale,
                    master=state.get("master"),
                    seed=self.seed + 1000 * number + place,
                    hyper=self.hyper[number][:6] if self.hyper else None,
                )


def restore_dtypes(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """After `load_state_dict`: torch casts state to the parameter's dtype, so that fp32 copies of a
    half-precision one would be rounded."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number, param in enumerate(params):
        for name, saved in state_dict["state"].get(number, {}).items():
            if torch.is_tensor(saved):
                optimizer.state[param][name] = saved.to(param.device, copy=True)


def _has_gradient(param: Tensor) -> bool:
    return param.grad is not None or bool(getattr(param, "row_grads", None))


def remove_row_component(grad: Tensor, rows: Tensor) -> Tensor:
    """Each row of `grad` less its component along the same row of `rows`; both [n, d]."""
    tiny = torch.finfo(rows.dtype).tiny
    along = (grad * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True).clamp_min(tiny)
    return grad - along * rows


def normalize_rows_(rows: Tensor) -> Tensor:
    """`rows` [n, d], each divided by its norm in place; a row of zeros stays zero."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(norms.clamp_min(torch.finfo(rows.dtype).tiny))

"""Adam with the kernels of `sae_kernels`, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sae_kernels.adam import adam_rows_, square_norm
from sae_kernels.hyper_values import hyper_values
from sae_kernels.row_grads import RowGrads


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) with optional unit-norm rows and decoupled weight decay.

    Groups with `unit_norm=True` hold matrices with rows that are directions: the component of the
    gradient along a row is removed before the moments are updated, and rows are normalized after
    the step. Groups with a `weight_decay` above 0 decay as in AdamW (Loshchilov & Hutter 2019).

    A half-precision parameter is the rounded copy of an fp32 master in the state. `encode` and
    `decode` give the gradients of matrices in parts (`sae_kernels.row_grads`), so that no tensor as
    large as the parameter is needed.

    Args:
        params: Parameter groups, as in torch.optim.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Number added to the denominator.
        clip_norm: Largest norm of the gradient over all groups. A longer gradient is scaled down to
            it, as torch.nn.utils.clip_grad_norm_ does. None: gradients are not clipped.
        moments: dtype of the moments; that of the parameter, and at least fp32, if None. bfloat16
            takes half the memory, with stochastic rounding.
        seed: Seed of the stochastic rounding.
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
        # For a step recorded by `training.cuda_graph`: the function that replays it, and the
        # settings of each group that it reads from the device.
        self.replay: Callable[[], None] | None = None
        self.hyper: list[Tensor] = []
        for param in self._params():
            if param.ndim == 2:
                param.row_grads = RowGrads()  # pyright: ignore[reportAttributeAccessIssue]

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
        """Return the factor that clips the gradient: 0-d, on the device.

        Returns None if there is no `clip_norm`, or no gradient.
        """
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
        """Count one step on the host, and for a recorded step on the device too."""
        for number, group in enumerate(self.param_groups):
            for param in group["params"]:
                if _has_gradient(param) or self.replay:
                    state = self.state[param]
                    if not state:
                        state.update(self._first_state(param))
                    state["step"] += 1
                    step = state["step"]
            if self.hyper:
                beta1, beta2 = group["betas"]
                values = (
                    *hyper_values(step, group["lr"], beta1, beta2, group["eps"]),
                    1 - group["lr"] * group["weight_decay"],
                )
                pinned = torch.tensor(values, dtype=torch.float64).pin_memory()
                self.hyper[number].copy_(pinned, non_blocking=True)

    @torch.no_grad()
    def apply(self) -> None:
        """Update every parameter that has a gradient, without waiting for the device."""
        scale = self.clip_factor()
        for number, group in enumerate(self.param_groups):
            beta1, beta2 = group["betas"]
            for index, param in enumerate(group["params"]):
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
                    seed=self.seed + 1000 * number + index,
                    hyper=self.hyper[number][:6] if self.hyper else None,
                )


def restore_dtypes(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Restore the saved dtypes of optimizer state after `load_state_dict`.

    torch casts state to the dtype of the parameter, which would round the fp32 copies of a
    half-precision parameter.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number, param in enumerate(params):
        for name, saved in state_dict["state"].get(number, {}).items():
            if torch.is_tensor(saved):
                optimizer.state[param][name] = saved.to(param.device, copy=True)


def _has_gradient(param: Tensor) -> bool:
    return param.grad is not None or bool(getattr(param, "row_grads", None))


def remove_row_component(grad: Tensor, rows: Tensor) -> Tensor:
    """Return `grad` without the component of each row along the same row of `rows`; both [n, d]."""
    tiny = torch.finfo(rows.dtype).tiny
    along = (grad * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True).clamp_min(tiny)
    return grad - along * rows


def normalize_rows_(rows: Tensor) -> Tensor:
    """Divide each row of `rows` [n, d] by its norm in place; a row of zeros does not change."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(norms.clamp_min(torch.finfo(rows.dtype).tiny))

"""Optimizers by name, and the parameter groups they get."""

from __future__ import annotations

from typing import Any

import torch

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.training.optim_config import OptimConfig
from sae.training.row_adam import RowAdam, normalize_rows_, remove_row_component
from sae.training.schedule_free import ScheduleFreeSign


def build_optimizer(sae: SAE, optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that `optim` names, for all parameters of `sae`.

    The learning rate of a group is that of the run times the group's `factor`. All optimizers but
    `RowAdam` need gradients as tensors as large as the parameters.

    Raises:
        UserError: `lr_factors` names a parameter that `sae` does not have, or muon is to train
            half-precision parameters.
    """
    groups = parameter_groups(sae, optim)
    if optim.name == "signum":
        return ScheduleFreeSign(groups, lr=lr)
    if optim.name == "muon":
        if sae.W_dec.dtype.itemsize < 4:
            raise UserError(
                "model.optim.name=muon keeps no fp32 copy of parameters in half precision; "
                "use adam, adamw or signum, or model.dtype=float32"
            )
        return MuonAndAdam(groups, lr=lr, optim=optim)
    return RowAdam(
        groups,
        lr=lr,
        betas=optim.betas,
        eps=optim.eps,
        moments=torch.bfloat16 if optim.moments == "bfloat16" else None,
        clip_norm=optim.clip_norm,
    )


def parameter_groups(sae: SAE, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return the parameter groups; parameters with the same settings share a group.

    W_dec comes last. Raises UserError if `lr_factors` names a parameter that `sae` does not have.
    """
    named = dict(sae.named_parameters())
    named["W_dec"] = named.pop("W_dec")
    for name in optim.lr_factors:
        if name not in named:
            raise UserError(
                f"model.optim.lr_factors.{name} names no parameter of this SAE; choose among: "
                f"{', '.join(named)}"
            )
    groups: dict[tuple, dict[str, Any]] = {}
    for name, param in named.items():
        on_sphere = optim.unit_norm and name == "W_dec"
        decays = optim.name == "adamw" and param.ndim == 2 and not on_sphere
        settings = {
            "factor": optim.lr_factors.get(name, 1.0),
            "unit_norm": on_sphere,
            "weight_decay": optim.weight_decay if decays else 0.0,
            "by_muon": optim.name == "muon" and name in ("W_enc", "W_dec"),
        }
        group = groups.setdefault(tuple(settings.values()), {"params": [], **settings})
        group["params"].append(param)
    return list(groups.values())


class MuonAndAdam(torch.optim.Optimizer):
    """torch.optim.Muon for groups with `by_muon`, torch.optim.Adam for the others.

    Muon's updates are scaled to the size of Adam's (arXiv 2502.16982: 0.2 sqrt(max(rows, columns))
    times an orthogonal matrix), so that one learning rate fits both. As in `RowAdam`, the norm of
    the gradient over all groups is clipped, and rows of groups with `unit_norm` stay at norm 1.

    Args:
        groups: Parameter groups, as in torch.optim.
        lr: Learning rate.
        optim: Settings with Adam's betas and eps, and clip_norm.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, optim: OptimConfig) -> None:
        matrices = [group for group in groups if group["by_muon"]]
        rest = [group for group in groups if not group["by_muon"]]
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam(rest, lr=lr, betas=optim.betas, eps=optim.eps),
        ]
        self.clip_norm = optim.clip_norm
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_state()

    def _share_state(self) -> None:
        """Let both optimizers use the state and groups of this one, which are saved."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share_state()

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.clip_norm is not None:
            params = [param for group in self.param_groups for param in group["params"]]
            torch.nn.utils.clip_grad_norm_(params, self.clip_norm)
        directions = [
            p
            for g in self.param_groups
            if g["unit_norm"]
            for p in g["params"]
            if p.grad is not None
        ]
        for param in directions:
            param.grad = remove_row_component(param.grad, param)
        for part in self.parts:
            part.step()
        for param in directions:
            normalize_rows_(param)
        return loss

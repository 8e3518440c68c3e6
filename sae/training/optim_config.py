"""Settings of the optimiser and of its learning-rate schedule."""

import math
from dataclasses import dataclass, field
from typing import Literal

from sae.argument_types import check_fields
from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule.

    Args:
        name: `adam`; `adamw` (Adam with weight_decay); `signum` (sign descent that averages its
            iterates and ignores warmup and decay; the average is validated and exported); or `muon`
            (Muon for W_enc and W_dec, Adam for the other parameters).
        lr: Highest learning rate of the run. If left out, a rule sets it from d_in and the length
            of the run (`sae.training.defaults`).
        lr_factors: Factors on the learning rate by the name of a parameter: W_enc, b_enc, W_dec,
            b_dec, W_skip, or a parameter of the sparsity rule.
        weight_decay: Weight decay of adamw. Each step multiplies W_enc, W_skip and, without
            unit_norm, W_dec by 1 - learning rate * weight_decay.
        betas: Decay rates of Adam's two moments.
        eps: Number added to Adam's denominator.
        moments: dtype of Adam's moments; bfloat16 takes half the memory.
        clip_norm: Largest norm of the gradient over all parameters. If left out, gradients are not
            clipped. It has no effect on signum, which uses only signs.
        warmup: Share of the run over which the learning rate rises.
        decay: Share of the run, at its end, over which the learning rate falls to zero.
        unit_norm: Keep the rows of W_dec at norm 1.
    """

    name: Literal["adam", "adamw", "signum", "muon"] = "adam"
    lr: float | None = None
    lr_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    moments: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float | None = None
    warmup: float = 0.05
    decay: float = 0.2
    unit_norm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "model.optim.")
        positive = {"lr": self.lr, "eps": self.eps, "clip_norm": self.clip_norm}
        for name, value in positive.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"model.optim.{name}={value} must be a positive number")
        factors = {f"lr_factors.{name}": factor for name, factor in self.lr_factors.items()}
        for name, value in {**factors, "weight_decay": self.weight_decay}.items():
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"model.optim.{name}={value} must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(
                f"model.optim.betas={self.betas} are decay rates; give two from 0 to below 1"
            )
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"model.optim.{name}={getattr(self, name)} is a share of the run: from 0 to 1"
                )
        if self.moments != "float32" and self.name not in ("adam", "adamw"):
            raise UserError(
                f"model.optim.moments={self.moments} is for adam and adamw, not {self.name}; "
                "leave it out"
            )

    def schedule(self, step: int, total: int) -> float:
        """Return the factor on the learning rate at `step` (from 0) of `total`."""
        if self.name == "signum":
            return 1.0
        return warmup_decay(step, total, warmup=self.warmup, decay=self.decay)


def warmup_decay(step: int, total: int, *, warmup: float, decay: float) -> float:
    """Return the factor on the learning rate at `step` (counted from 0) of `total`.

    It rises linearly from 1/n to 1 over the first `warmup` share of the run (n steps), and falls
    linearly towards 0 over the last `decay` share, so that the last step still changes weights.
    """
    rising = warmup * total
    falling = decay * total
    up = (step + 1) / rising if rising > step + 1 else 1.0
    down = (total - step) / falling if falling > total - step else 1.0
    return up * down

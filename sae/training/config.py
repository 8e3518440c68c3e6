"""How the parameters move: settings of the optimiser and its schedule."""

import math
from dataclasses import dataclass
from typing import Literal

from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its schedule.

    Args:
        lr: learning rate; left out, `lr_scale / sqrt(d_sae / 2**14)`.
        lr_scale: the learning rate of an SAE of 16,384 latents (2e-4 in Gao et al. 2024).
        betas: decay rates of Adam's two moments.
        eps: added to Adam's denominator.
        moments: dtype in which Adam keeps its moments; bfloat16 takes half the memory.
        clip_norm: the most that the norm of the gradient may be, over all parameters; none when
            left out.
        warmup: share of the run over which the learning rate rises.
        decay: share of the run, at its end, over which it falls to zero.
        unit_norm: hold the rows of W_dec at norm 1.
    """

    lr: float | None = None
    lr_scale: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    moments: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float | None = None
    warmup: float = 0.05
    decay: float = 0.2
    unit_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("lr", "lr_scale", "eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"model.optim.{name}={value} must be a positive number")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"model.optim.{name}={getattr(self, name)} is a share of the run: from 0 to 1"
                )

    def learning_rate(self, d_sae: int) -> float:
        return self.lr if self.lr is not None else self.lr_scale / math.sqrt(d_sae / 2**14)

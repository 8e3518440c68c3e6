"""The numbers of one Adam step that change from step to step, in the order of the GPU kernel."""

from __future__ import annotations


def hyper_values(
    step: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[float, float, float, float, float, float]:
    """Return (lr / (1 - beta1^t), sqrt(1 - beta2^t), beta1, beta2, eps, t) for step t."""
    return lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, beta1, beta2, eps, float(step)

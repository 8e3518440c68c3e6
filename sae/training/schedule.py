"""How the learning rate moves."""

from __future__ import annotations


def warmup_decay(step: int, total: int, *, warmup: float, decay: float) -> float:
    """Factor on the learning rate at `step` (from 0) of `total`.

    Rises linearly from 1/n to 1 over the first `warmup` share of the run and falls linearly towards
    0 over the last `decay` share, so the last step still moves.
    """
    rising = warmup * total
    falling = decay * total
    up = (step + 1) / rising if rising > step + 1 else 1.0
    down = (total - step) / falling if falling > total - step else 1.0
    return up * down

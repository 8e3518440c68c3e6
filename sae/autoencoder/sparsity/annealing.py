"""k that falls during a run: many latents learn before few may fire (sparsify, OpenMOSS)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sae.errors import UserError


def check_annealing(rule: Any) -> None:
    """Raises UserError for a start below k or above d_sae, or a share of the run that is none."""
    if not 0 <= rule.k_anneal <= 1:
        raise UserError(f"model.sae.k_anneal={rule.k_anneal} is a share of the run: from 0 to 1")
    start = rule.k_start
    if start is None and rule.k_anneal:
        raise UserError(f"model.sae.k_anneal={rule.k_anneal} needs model.sae.k_start; set it")
    if start is not None and not rule.k <= start <= rule.d_sae:
        raise UserError(
            f"model.sae.k_start={start} must lie between k={rule.k} and d_sae={rule.d_sae}"
        )


def annealed_k(rule: Any, progress: float) -> Any:
    """`rule` with the k it has at `progress`, from 0 to 1 of the run."""
    if rule.k_start is None or progress >= rule.k_anneal:
        return rule
    left = 1 - progress / rule.k_anneal
    return replace(rule, k=rule.k + round(left * (rule.k_start - rule.k)))

"""Successive halving: the worse half of a sweep stops on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import fmean

from sae.lightning.module import SAEModule
from sae.sweep.l0_groups import of_like_l0
from sae.training.member import Member


class Halving:
    """At the first look at held-out activations after a quarter and after half of the run, the
    worse half by held-out FVU, rounded down, is stopped, among members of about the same L0.

    Successive halving (Jamieson & Talwalkar 2016) with two rungs. A rung early in the run may stop
    what would have won in the end: schedules are over the whole run, and nobody's has fallen yet.

    Args:
        candidates: of each member, what it is a seed of: seeds stop together, by their mean.
    """

    RUNGS = (0.25, 0.5)

    def __init__(self, candidates: dict[str, str]) -> None:
        self.candidates = candidates

    def __call__(self, module: SAEModule) -> None:
        """Stop members of `module`, if this look at held-out activations is a rung."""
        steps, earlier = module.trainer.max_steps, module.steps - module.judge_every
        due = any(earlier < share * steps <= module.steps for share in self.RUNGS)
        if not due or module.steps == steps:
            return
        seeds: dict[str, list[Member]] = {}
        for member in module.live:
            seeds.setdefault(self.candidates[member.name], []).append(member)
        for group in of_like_l0(seeds.values(), partial(_mean, "held_out_l0")):
            best_first = sorted(group, key=partial(_mean, "held_out_fvu"))
            for some in best_first[math.ceil(len(group) / 2) :]:
                for member in some:
                    fvu = member.held_out["held_out_fvu"]
                    member.stop(f"stopped early: held-out FVU {fvu:.4f}")


def _mean(figure: str, seeds: Sequence[Member]) -> float:
    return fmean(member.held_out[figure] for member in seeds)

"""Successive halving: stop the worse half of a sweep's members during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

from lightning.pytorch import Callback, Trainer

from sae.lightning.module import SAEModule
from sae.sweep.l0_groups import group_by_l0
from sae.training.member import Member


class Halving(Callback):
    """A callback that stops the worse half of the members at two points of the run.

    At the first validation after a quarter and after half of the run, members with about the same
    L0 are compared by held-out FVU, and the worse half of them (rounded down) stops. This is
    successive halving (Jamieson & Talwalkar 2016) with two rungs. An earlier rung could stop the
    member that would have won, because no learning rate has decayed by then.

    Args:
        candidates: for each member's name, the name of the settings it is a seed of. Seeds of the
            same settings are compared by their mean, and stop together.
    """

    RUNGS = (0.25, 0.5)

    def __init__(self, candidates: Mapping[str, str]) -> None:
        self.candidates = candidates

    def setup(self, trainer: Trainer, pl_module: SAEModule, stage: str) -> None:
        pl_module.after_validation.append(self.stop_worse_half)

    def stop_worse_half(self, module: SAEModule) -> None:
        """Stop members of `module` if this validation is the first one after a rung."""
        steps, earlier = module.trainer.max_steps, module.steps - module.validate_every
        due = any(earlier < share * steps <= module.steps for share in self.RUNGS)
        if not due or module.steps == steps:
            return
        seeds: dict[str, list[Member]] = {}
        for member in module.live:
            seeds.setdefault(self.candidates[member.name], []).append(member)
        for group in group_by_l0(seeds.values(), partial(_mean, "held_out_l0")):
            best_first = sorted(group, key=partial(_mean, "held_out_fvu"))
            for candidate in best_first[math.ceil(len(group) / 2) :]:
                for member in candidate:
                    fvu = member.held_out["held_out_fvu"]
                    member.stop(f"stopped early: held-out FVU {fvu:.4f}")


def _mean(metric: str, seeds: Sequence[Member]) -> float:
    """Return the mean of a held-out metric over the seeds of one candidate."""
    return fmean(member.held_out[metric] for member in seeds)

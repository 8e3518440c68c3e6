"""Default settings, as rules chosen by a sweep over three kinds of activations and three sizes of
each (`python -m benchmarks.defaults`; docs/defaults.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sae.autoencoder.losses import LossTerm
from sae.autoencoder.sparsity import Sparsity

USUAL_L0 = 32
TRAVEL = 1.5


def learning_rate(
    optimizer: str, d_in: int, d_sae: int, steps: int, *, needs_penalty: bool = False
) -> float:
    """Return the default learning rate, the highest of a run of `steps` steps.

    Adam moves every entry of a row of norm 1 by about the learning rate, so the row turns by about
    lr sqrt(d_in) in a step, and if steps were a random walk by lr sqrt(d_in steps) in the run. That
    is what is held: at 1.5. d_sae, k and batch size did not move the best rate by as much as the
    grid's factor of 2. Twice as much where a penalty keeps latents from firing: that takes longer
    to sort them than a choice of k. Muon's updates are of the size of Adam's. For signum, which
    averages its iterates, sparsify's rule.
    """
    if optimizer == "signum":
        return 5e-3 / math.sqrt(d_sae / 2**14)
    return (2 if needs_penalty else 1) * TRAVEL / math.sqrt(d_in * steps)


def target_l0_of(rule: Sparsity, losses: Sequence[LossTerm]) -> float:
    """Latents per token that a run ends with: k, or a penalty's target_l0, or 32 if neither is
    given."""
    targets = [term.target_l0 for term in losses if term.target_l0]
    return rule.expected_l0 or next(iter(targets), USUAL_L0)


def dead_after(d_sae: int, l0: float, tokens: int) -> int:
    """Return the tokens without firing after which a latent is dead, in a run over `tokens`.

    A latent of average use fires every d_sae / L0 tokens; one that stays away for 512 times as long
    is dead, and in runs that can afford to wait only one that does so for 2% of the run: 10 million
    tokens of 500 million, which is what Gao et al. (2024) wait.
    """
    return max(1, math.ceil(512 * d_sae / l0), tokens // 50)


def refresh_steps(dead_after: int, batch_size: int) -> int:
    """Return the steps between two lists of dead latents: two lists in `dead_after` tokens, and at
    least one every 50 steps."""
    return min(50, max(1, dead_after // (2 * batch_size)))

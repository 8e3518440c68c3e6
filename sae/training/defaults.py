"""Rules for default settings.

They were chosen by a sweep over three kinds of activations with three sizes each
(`python -m benchmarks.defaults`; docs/defaults.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sae.autoencoder.losses import LossTerm
from sae.autoencoder.sparsity import Sparsity

# L0 that is assumed if neither the rule nor a penalty gives one.
DEFAULT_L0 = 32
# Angle, in radians, by which a row turns in a run if Adam's steps are a random walk.
ROW_ROTATION = 1.5


def learning_rate(
    optimizer: str, d_in: int, d_sae: int, steps: int, *, needs_penalty: bool = False
) -> float:
    """Return the default learning rate, the highest of a run of `steps` steps.

    Adam moves every entry of a row of norm 1 by about the learning rate, so the row turns by about
    lr sqrt(d_in) in a step, and in the run by lr sqrt(d_in steps) if steps are a random walk. The
    rule sets this angle to 1.5. d_sae, k and batch size changed the best learning rate by less than
    a factor of 2, the resolution of the sweep. The learning rate is twice as high if a penalty
    makes codes sparse, because latents then take longer to separate than with a fixed k. Muon's
    updates have the size of Adam's. Signum, which averages its iterates, has sparsify's rule.

    Args:
        optimizer: Name of the optimizer, as in `OptimConfig`.
        d_in: Width of the activations.
        d_sae: Number of latents.
        steps: Length of the run.
        needs_penalty: Whether a penalty makes codes sparse, as opposed to a k.
    """
    if optimizer == "signum":
        return 5e-3 / math.sqrt(d_sae / 2**14)
    return (2 if needs_penalty else 1) * ROW_ROTATION / math.sqrt(d_in * steps)


def target_l0_of(rule: Sparsity, losses: Sequence[LossTerm]) -> float:
    """Return the L0 at the end of a run: k, or a penalty's `target_l0`, or 32 if none is given."""
    targets = [term.target_l0 for term in losses if term.target_l0]
    return rule.expected_l0 or next(iter(targets), DEFAULT_L0)


def dead_after(d_sae: int, l0: float, tokens: int) -> int:
    """Return the tokens without firing after which a latent is dead, in a run over `tokens`.

    An average latent fires every d_sae / L0 tokens, and is dead if it is silent for 512 times as
    long, or for 2% of the run if that is more. 2% of 500 million tokens are the 10 million tokens
    of Gao et al. (2024).
    """
    return max(1, math.ceil(512 * d_sae / l0), tokens // 50)


def refresh_steps(dead_after: int, batch_size: int) -> int:
    """Return the steps between two updates of the list of dead latents.

    The list is updated twice in `dead_after` tokens, and at least every 50 steps.
    """
    return min(50, max(1, dead_after // (2 * batch_size)))

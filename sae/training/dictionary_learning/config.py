"""Settings of dictionary learning by sparse coding, and the schedule of its penalty."""

import math
from dataclasses import dataclass

from sae.argument_types import check_fields
from sae.errors import UserError

# Share of the steps, at the end, in which the penalty has its final value and no atom is replaced.
# Restarts are compared by their objectives in these steps.
FINAL_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class SparseCoding:
    """Learn the dictionary without gradients in the first part of a run, then train the encoder.

    The first part minimizes 1/2 |x - b - z D|^2 + penalty |z|_1 alternately over codes z and
    dictionary D. In the second part W_dec is D and does not change, and the encoder is trained.

    Penalties are in the unit in which E|x - c| = sqrt(width), where c is the center of the
    activations, or 0 without `bias`. In that unit the product of x with a
    random direction has a standard deviation of 1, so a penalty of 1 or more keeps almost all
    chance correlations out of the codes. The penalty falls, which lets in large codes first.

    Args:
        penalty: Final penalty. It shrinks codes by about this much.
        first_penalty: Penalty of the first step. It falls linearly in its logarithm over the first
            four fifths of the first part.
        share: Share of the run's steps that the first part takes.
        iterations: FISTA steps for the codes of a batch, from codes of 0.
        rounds: Rounds of the active-set solver (`sae.inference.active_set`), which replaces FISTA
            if this is set. It is faster if a sample needs few of many atoms. The lower the penalty,
            the larger the gain: FISTA's codes are dense before they converge, and every atom seems
            to be needed. In an online run on 1,000 features in 93 dimensions, 3 to 4 rounds were as
            good as 60 iterations. It cannot find negative codes.
        restarts: Number of dictionaries learned side by side from different starts. The one with
            the lowest mean objective over the last fifth of the first part is used.
        forgetting: After t batches, the batch of step s has the weight (s / t)^forgetting in the
            dictionary. 0 weighs all batches alike (Mairal et al. 2010, section 3.4.2).
        replace_every: Steps between two replacements of atoms that no sample needs, and of the
            less used of two atoms that point the same way. None: never.
        same: Cosine above which two atoms point the same way. Random directions come as close as
            .9 only below 8 dimensions; in d_in dimensions they come to sqrt(4 ln(d_sae) / d_in).
            A feature that is far more frequent than all others is split among many atoms that have
            cosines of .6 to .8, because each also has a part of another feature. A feature that was
            active in half the samples took 40 of 1,000 atoms.
        non_negative: False allows negative codes.
        bias: Whether b_dec is learned too. If not, it is 0, as in worlds without a bias.

    Raises:
        UserError: A setting is out of its range, or `rounds` is set and `non_negative` is False.
    """

    penalty: float = 0.1
    first_penalty: float = 2.0
    share: float = 0.5
    iterations: int = 20
    rounds: int | None = None
    restarts: int = 1
    forgetting: float = 5.0
    replace_every: int | None = 5
    same: float = 0.9
    non_negative: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "model.sparse_coding.")
        for name in ("penalty", "first_penalty"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"model.sparse_coding.{name}={value} must be a positive number")
        if self.first_penalty < self.penalty:
            raise UserError(
                f"model.sparse_coding.first_penalty={self.first_penalty} is below penalty="
                f"{self.penalty}, but the penalty must not rise during a run; raise first_penalty"
            )
        if not 0 < self.share < 1:
            raise UserError(
                f"model.sparse_coding.share={self.share} must be above 0, and below 1, because the "
                "encoder is trained in the rest of the run"
            )
        if not (self.forgetting >= 0 and math.isfinite(self.forgetting)):
            raise UserError(
                f"model.sparse_coding.forgetting={self.forgetting} must not be negative"
            )
        if not 0 < self.same <= 1:
            raise UserError(
                f"model.sparse_coding.same={self.same} is a cosine: above 0, and at most 1"
            )
        if self.rounds is not None and not self.non_negative:
            raise UserError(
                f"model.sparse_coding.rounds={self.rounds} finds no negative codes; leave it out, "
                "or set non_negative: true"
            )
        for name in ("iterations", "rounds", "restarts", "replace_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model.sparse_coding.{name}={value}; give at least 1")

    def is_final(self, step: int, steps: int) -> bool:
        """Return whether `step` (from 0) of `steps` has the final penalty and replaces no atoms."""
        return step >= (1 - FINAL_SHARE) * steps

    def penalty_at(self, step: int, steps: int) -> float:
        """Return the penalty of `step` (from 0) of `steps`."""
        progress = min(1.0, step / max((1 - FINAL_SHARE) * steps, 1))
        return self.first_penalty * (self.penalty / self.first_penalty) ** progress

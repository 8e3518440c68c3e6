"""Settings of dictionary learning by sparse coding, and the schedule of its penalty."""

import math
from dataclasses import dataclass

from sae.errors import UserError

# Share of the steps, at their end, for which the penalty stays at its last value and no atom is
# replaced: what the objective is judged by.
HOLD = 0.2


@dataclass(frozen=True, kw_only=True)
class SparseCoding:
    """In the first part of a run the dictionary is learnt without gradients, by alternating
    minimisation of 1/2 |x - b - z D|^2 + penalty |z|_1 over codes z and dictionary D; then W_dec is
    D, is held, and the encoder is trained to it.

    Penalties are in the unit in which E|x| = sqrt(width): there x has a correlation of standard
    deviation 1 with a random direction, so at 1 and above chance hardly enters a code. Falling from
    there, the penalty lets in the large values of a code first.

    Args:
        penalty: the last one; it shrinks codes by about so much.
        first_penalty: the first one; it falls evenly in its logarithm, over four fifths of that
            part.
        share: how long that part is, of the run.
        iterations: steps of FISTA for the codes of a batch, from 0 on.
        rounds: if given, codes are found on an active set, in so many rounds, in place of FISTA
            (`sae.inference.active_set`). That pays where a sample needs few of many atoms, and the
            more the lower the penalty: codes that have not converged are dense, and every atom
            seems needed. In an online run on 1,000 features in 93 dimensions, 3 to 4 rounds do
            what takes 60 iterations. Not for negative codes.
        restarts: dictionaries learnt side by side, from other starts; the one with the lowest mean
            objective over the last fifth of the part is taken.
        forgetting: after t batches the batch of step s weighs (s / t)^forgetting in the dictionary;
            0 weighs all alike (Mairal et al. 2010, section 3.4.2).
        replace_every: steps between two times that atoms which no sample needs, and the lesser of
            two that point the same way, are replaced; None: never.
        same: the cosine above which two atoms point the same way. Random directions come as close
            as .9 in less than 8 dimensions only; in d_in dimensions, to sqrt(4 ln(d_sae) / d_in).
            A feature that is far more frequent than all others is split among many atoms, each with
            some of another, at cosines of .6 to .8: one that was active in half the samples took
            40 of 1,000 atoms.
        non_negative: False allows negative codes.
        bias: whether b_dec is learnt too; else it is 0, as in worlds without one.
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
        for name in ("penalty", "first_penalty"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"model.sparse_coding.{name}={value} must be a positive number")
        if self.first_penalty < self.penalty:
            raise UserError(
                f"model.sparse_coding.first_penalty={self.first_penalty} is below penalty="
                f"{self.penalty}, but penalties fall; raise it"
            )
        if not 0 < self.share < 1:
            raise UserError(
                f"model.sparse_coding.share={self.share} must be above 0, and below 1: the encoder "
                "is trained in the rest"
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
                "or take non_negative: true"
            )
        for name in ("iterations", "rounds", "restarts", "replace_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model.sparse_coding.{name}={value}; give at least 1")

    def holds(self, step: int, steps: int) -> bool:
        """Whether `step` (from 0) of `steps` is among the last, with all settled."""
        return step >= (1 - HOLD) * steps

    def penalty_at(self, step: int, steps: int) -> float:
        """The penalty of `step` (from 0) of `steps`."""
        fallen = min(1.0, step / max((1 - HOLD) * steps, 1))
        return self.first_penalty * (self.penalty / self.first_penalty) ** fallen

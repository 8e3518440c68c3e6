"""What every sparsity rule answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor

from sae.autoencoder.registry import Registered
from sae.autoencoder.weights import ExtraParam, Weights
from sae.errors import UserError
from sae_kernels.codes import Codes


@dataclass
class EncoderOutput:
    """What a rule hands to training.

    Args:
        codes: what the decoder takes.
        gates: [nnz], 1 where a slot of `codes` fires and 0 where it does not, differentiable in the
            thresholds: their sum is the L0. None where L0 has no gradient.
        gate_codes: the gates' own activations, of a rule whose gates are apart from its magnitudes.
        parts: the same of each group of latents, where there are several.
    """

    codes: Codes
    gates: Tensor | None = None
    gate_codes: Codes | None = None
    parts: list[EncoderOutput] = field(default_factory=list)


class Sparsity(Registered, ABC, family="model.sae"):
    """Which of the `d_sae` latents fire on an activation, and how strongly."""

    d_sae: int

    threshold_param: ClassVar[tuple[str, int]] = ("b_enc", -1)
    """The parameter that says how much it takes to fire, and the sign with which it takes more."""

    @abstractmethod
    def encode(self, x: Tensor, weights: Weights, *, backend: str = "auto") -> Codes:
        """Sparse codes of `x` [batch, d_in], differentiable in the weights."""

    def encode_training(
        self, x: Tensor, weights: Weights, *, backend: str = "auto"
    ) -> EncoderOutput:
        """The same for training, where that differs."""
        return EncoderOutput(self.encode(x, weights, backend=backend))

    def extra_params(self) -> dict[str, ExtraParam]:
        """Parameters beside W_enc, b_enc, W_dec and b_dec."""
        return {}

    def learned_params(self) -> set[str]:
        """Names of its own parameters that learn by gradient."""
        return {name for name, own in self.extra_params().items() if own.learns}

    def post_step(self, encoded: EncoderOutput, weights: Weights) -> None:
        """Change what does not learn by gradient, in place; called after each step."""

    def project(self, weights: Weights) -> None:
        """Bring weights back to what the rule allows, in place; called after each step, and on
        averages of weights."""

    def at_progress(self, progress: float) -> Self:
        """The rule as it is at a share of the run, from 0 to 1."""
        return self

    def per_group(self, n: int) -> Self:
        """The rule for one of `n` equal groups of latents, each with its share of what may fire."""
        some = {"d_sae": self.d_sae // n}
        for name in ("k", "k_start"):
            if getattr(self, name, None) is not None:
                some[name] = max(1, getattr(self, name) // n)
        return replace(self, **some)

    def check_per_group(self, n: int) -> None:
        """Raises UserError where `n` groups cannot have equal shares."""
        for name in ("d_sae", "k"):
            value = getattr(self, name, 0)
            if value % n:
                raise UserError(
                    f"model.sae.{name}={value} cannot be shared equally among the {n} layers of "
                    f"the site; make it a multiple of {n}"
                )

    @property
    def needs_penalty(self) -> bool:
        """Whether nothing but a penalty in the objective keeps latents from firing."""
        return False

    @property
    def signed(self) -> bool:
        """Whether activations may be negative."""
        return False


def check_width(d_sae: int) -> None:
    if d_sae < 1:
        raise UserError(f"model.sae.d_sae={d_sae} is not a width; give at least 1")


def check_k(k: int, d_sae: int) -> None:
    """Raises UserError unless 1 <= k <= d_sae."""
    check_width(d_sae)
    if k < 1:
        raise UserError(f"model.sae.k={k} lets no latent fire; give at least 1")
    if k > d_sae:
        raise UserError(f"model.sae.k={k} exceeds model.sae.d_sae={d_sae}; lower k or raise d_sae")

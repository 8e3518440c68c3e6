"""Base class of sparsity rules, and what passes between a rule and the SAE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Self

from torch import Tensor

from sae.argument_types import describe
from sae.autoencoder.registry import Registered
from sae.errors import UserError
from sae_kernels.codes import Codes


@dataclass(frozen=True)
class ExtraParam:
    """A parameter that a sparsity rule adds to W_enc, b_enc, W_dec and b_dec.

    Args:
        start: Value before training.
        power: 1 for a parameter that is added to pre-activations or compared with them, and so
            scales with the activations; 0 for a factor.
        per_latent: Whether its shape is [d_sae]; otherwise it is 0-d.
        learns: Whether it learns by gradient; otherwise `Sparsity.post_step` changes it.
        wide: Whether it stays float32 in a half-precision SAE.
    """

    start: float
    power: int = 1
    per_latent: bool = True
    learns: bool = True
    wide: bool = False


@dataclass(frozen=True)
class EncoderWeights:
    """The parameters that a sparsity rule encodes with.

    Args:
        W_enc: [d_in, d_sae], stored latent by latent.
        b_enc: [d_sae].
        W_dec: [d_sae, d_out].
        pre_bias: [d_in], subtracted from x; None if x is not what the SAE predicts.
        extra: The rule's extra parameters by name.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    pre_bias: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def latents(self, latents: slice) -> EncoderWeights:
        """Return the weights of a contiguous run of latents, as views."""
        return replace(
            self,
            W_enc=self.W_enc[:, latents],
            b_enc=self.b_enc[latents],
            W_dec=self.W_dec[latents],
            extra={name: t[latents] if t.dim() else t for name, t in self.extra.items()},
        )


@dataclass
class EncoderOutput:
    """The result of encoding a training batch.

    Args:
        codes: What the decoder takes.
        gates: [nnz], 1 for a slot of `codes` that fires and 0 otherwise, differentiable in the
            thresholds; their sum is the L0. None if L0 has no gradient.
        gate_codes: The activations of the gates, for a rule with gates apart from its magnitudes.
        parts: The output of each group of latents, if there are several.
    """

    codes: Codes
    gates: Tensor | None = None
    gate_codes: Codes | None = None
    parts: list[EncoderOutput] = field(default_factory=list)


class ThresholdParam(NamedTuple):
    """A parameter, and the sign of a change to it that makes latents fire less."""

    name: str
    sign: int


class Sparsity(Registered, ABC, family="model.sae"):
    """A rule that decides which of the `d_sae` latents fire on an activation, and how strongly."""

    d_sae: int

    threshold_param: ClassVar[ThresholdParam] = ThresholdParam("b_enc", -1)
    """The parameter that raises the firing threshold when it moves by +sign."""
    has_gates: ClassVar[bool] = False
    """True if `EncoderOutput.gate_codes` is set."""
    learns_encoder: ClassVar[bool] = True
    """True if W_enc is learned; otherwise it follows W_dec if the SAE predicts what it reads."""
    permutable: ClassVar[bool] = True
    """True if latents may be reordered without changing which of them fire."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_sae < 1:
            raise UserError(f"model.sae.d_sae={self.d_sae}; give at least 1 latent")

    @abstractmethod
    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        """Return the sparse codes of `x` [batch, d_in], differentiable in the weights."""

    def encode_training(
        self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto"
    ) -> EncoderOutput:
        """Return the codes of `x` [batch, d_in] in training, for rules that differ there."""
        return EncoderOutput(self.encode(x, weights, backend=backend))

    def extra_params(self) -> dict[str, ExtraParam]:
        """Return the parameters besides W_enc, b_enc, W_dec and b_dec, by name."""
        return {}

    def learned_params(self) -> set[str]:
        """Return the names of the extra parameters that learn by gradient."""
        return {name for name, extra in self.extra_params().items() if extra.learns}

    def post_step(self, encoded: EncoderOutput, weights: EncoderWeights) -> None:
        """Update, in place and after each step, parameters that do not learn by gradient."""

    def project(self, weights: EncoderWeights) -> None:
        """Restore the rule's constraints on the weights, in place.

        Called after each step, and on averages of weights.
        """

    def shift_pre_acts(self, weights: EncoderWeights, shift: Tensor) -> None:
        """Add `shift` [d_sae] to the products x W_enc, by changing biases in place.

        Called when an SAE is exported that reads something else than it predicts, because then no
        bias is subtracted from x.
        """
        weights.b_enc.add_(shift)

    def at_progress(self, progress: float) -> Self:
        """Return the rule at a share of the run, from 0 to 1."""
        return self

    def per_group(self, n: int) -> Self:
        """Return the rule for one of `n` equal groups of latents, with its share of the L0."""
        return replace(self, d_sae=self.d_sae // n)  # type: ignore[type-var]

    def check_per_group(self, n: int) -> None:
        """Raise UserError if `n` groups cannot have equal shares of latents and of the L0."""
        self._check_share("d_sae", self.d_sae, n)

    def _check_share(self, name: str, value: int, n: int) -> None:
        if value % n:
            raise UserError(
                f"model.sae.{name}={value} is not a multiple of {n}, but each of the {n} layers of "
                "the site has an equal share of it; choose a multiple"
            )

    @property
    def expected_l0(self) -> int | None:
        """The number of latents per activation that the rule fixes, or None if it fixes none."""
        return None

    def with_l0(self, l0: int) -> Self | None:
        """Return the rule with another fixed L0 and no annealing, or None if it has no such L0."""
        return None

    def with_d_sae(self, d_sae: int) -> Self:
        """Return the rule for fewer latents, as it is at the end of training."""
        return replace(self, d_sae=d_sae)  # type: ignore[type-var]

    @property
    def anneals(self) -> bool:
        """True if `expected_l0` changes during the run."""
        return False

    @property
    def peak_l0(self) -> float:
        """The largest L0 to expect at any time in a run.

        Half of all latents if only a penalty limits them, because random directions start there.
        """
        return self.d_sae / 2 if self.needs_penalty else self.d_sae

    @property
    def unrolled_layers(self) -> int:
        """The number of encoder layers after the first, each of which costs two more products."""
        return 0

    @property
    def needs_penalty(self) -> bool:
        """True if only a penalty in the loss keeps latents from firing."""
        return False

    @property
    def signed(self) -> bool:
        """True if activations of latents may be negative."""
        return False


describe(Sparsity, "a sparsity rule such as TopK(d_sae=4096, k=32)", "sparsity rules")

"""One autoencoder and what it is judged on, for `sae.evaluation.registry`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sae.activations import Source
from sae.autoencoder import SAE
from sae.evaluation.samples import Sample
from sae.evaluation.similarity import Judge
from sae.metrics.code_matching import (
    CodeMatching,
    code_chance,
    match_codes_absolute,
    match_codes_signed,
)
from sae.metrics.firing import Firing
from sae.metrics.interpretability import Similarity
from sae_kernels.codes import Codes

# Rows that codes are matched on, and DCI and probes fitted on.
CODE_ROWS = 4096


@dataclass(frozen=True)
class Case:
    """An autoencoder, and what is known of what it was judged on. None: it is not."""

    sae: SAE
    source: Source
    sample: Sample
    firing: Firing
    judge: Judge

    @cached_property
    def codes(self) -> Codes:
        """Of the rows kept."""
        return self.sample.codes()

    @cached_property
    def z(self) -> Codes | None:
        """Their true codes."""
        return self.sample.true_codes()

    @cached_property
    def truth(self) -> Tensor | None:
        """True directions [features, d_in]."""
        features = self.source.known_features()
        return None if features is None else features.truth

    @cached_property
    def parents(self) -> Tensor | None:
        """See `KnownFeatures.parents`."""
        features = self.source.known_features()
        return None if features is None else features.parents

    @cached_property
    def dictionary(self) -> Tensor | None:
        """W_dec, where it is one of what each latent reads."""
        return self.sae.W_dec if self.sae.reconstructs_input else None

    @cached_property
    def similarity(self) -> Similarity | None:
        return self.judge.similarity(self.source, self.sample)

    @cached_property
    def of_contexts(self) -> dict[str, Tensor] | None:
        """Sums of `Downstream`."""
        spliced = self.sample.spliced
        return None if spliced is None else dict(spliced.of_contexts)

    @cached_property
    def few(self) -> tuple[Codes, Codes]:
        """True codes and codes of `CODE_ROWS` rows."""
        return self.z.rows(slice(0, CODE_ROWS)), self.codes.rows(slice(0, CODE_ROWS))

    @cached_property
    def match(self) -> Callable[[Codes, Codes], CodeMatching]:
        signed = bool((self.z.values < 0).any())
        return match_codes_absolute if signed else match_codes_signed

    @cached_property
    def matching(self) -> CodeMatching:
        """Of `few`."""
        return self.match(*self.few)

    def chance(self, score: Callable[[Codes, Codes], float]) -> float:
        return code_chance(score, *self.few, draws=1)

"""The inputs of the measurements: everything known about an evaluated SAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sae.activations import Source
from sae.autoencoder import SAE
from sae.evaluation.samples import Samples
from sae.evaluation.similarity import SampleSimilarity
from sae.metrics.code_matching import (
    CodeMatching,
    match_codes_absolute,
    match_codes_signed,
)
from sae.metrics.firing import Firing
from sae.metrics.interpretability import Similarity
from sae.metrics.score import Score
from sae_kernels.codes import Codes

CODE_ROWS = 4096
"""Rows on which codes are matched, and DCI and probes are fitted."""


@dataclass(frozen=True)
class EvaluationContext:
    """An evaluated SAE and everything that measurements may ask for.

    A `Measurement` names the attributes that it needs. An attribute is None if it is not known for
    this SAE or its source; measurements that need it are then skipped. "Rows" are the activations
    that `samples` stored.

    Attributes:
        sae: the SAE.
        source: where the activations come from.
        samples: what the evaluation stored about each row.
        firing: how often each latent fired, over all activations.
        sample_similarity: what the interpretability metrics compare samples by.
    """

    sae: SAE
    source: Source
    samples: Samples
    firing: Firing
    sample_similarity: SampleSimilarity

    @cached_property
    def x(self) -> Tensor:
        """The rows that the SAE read [n, d_in], on its device."""
        return self.samples.x

    @cached_property
    def row_clusters(self) -> Tensor:
        """The independent unit of each row, such as its document, int64 [n] on the CPU."""
        provenance = self.samples.provenance
        clusters = None if provenance is None else provenance.clusters
        return torch.arange(len(self.x)) if clusters is None else clusters

    @cached_property
    def codes(self) -> Codes:
        """The SAE's codes of the rows."""
        return self.samples.codes()

    @cached_property
    def row_scores(self) -> Mapping[str, Score]:
        """Scores over all activations; see `Samples.scores`."""
        return self.samples.scores()

    @cached_property
    def reconstructing_sae(self) -> SAE | None:
        """The SAE, if it reconstructs what it reads; None for transcoders."""
        return self.sae if self.sae.reconstructs_input else None

    @cached_property
    def ungrouped_sae(self) -> SAE | None:
        """The SAE, if its latents do not fall into groups that read different activations."""
        return self.sae if self.sae.site.bind(self.source.widths).groups == 1 else None

    @cached_property
    def true_codes(self) -> Codes | None:
        """The true codes of the rows."""
        return self.samples.true_codes()

    @cached_property
    def true_directions(self) -> Tensor | None:
        """The true directions [features, d_in]."""
        features = self.source.known_features()
        return None if features is None else features.truth

    @property
    def training_samples(self) -> Tensor | None:
        """Training activations that the SAE predicts [n, d_out], if true features are known."""
        return self.samples.training

    @cached_property
    def parents(self) -> Tensor | None:
        """The parent of each true feature; see `KnownFeatures.parents`."""
        features = self.source.known_features()
        return None if features is None else features.parents

    @cached_property
    def similarity(self) -> Similarity | None:
        """The similarity of two rows, computed without an SAE."""
        return self.sample_similarity.of_samples(self.source, self.samples)

    @cached_property
    def document_sums(self) -> Mapping[str, Tensor] | None:
        """Sums over each document of a model's output; see `Downstream.document_sums`."""
        downstream = self.samples.downstream
        return None if downstream is None else downstream.document_sums

    @cached_property
    def code_pair(self) -> tuple[Codes, Codes] | None:
        """The true codes and the SAE's codes of the first `CODE_ROWS` rows."""
        if self.true_codes is None:
            return None
        rows = slice(0, CODE_ROWS)
        return self.true_codes.rows(rows), self.codes.rows(rows)

    @cached_property
    def match(self) -> Callable[[Codes, Codes], CodeMatching] | None:
        """The function that matches latents to true features by their codes."""
        if self.true_codes is None:
            return None
        signed = bool((self.true_codes.values < 0).any())
        return match_codes_absolute if signed else match_codes_signed

    @cached_property
    def matching(self) -> CodeMatching | None:
        """The matching of `code_pair`."""
        if self.match is None or self.code_pair is None:
            return None
        return self.match(*self.code_pair)

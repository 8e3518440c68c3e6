"""Similarity between samples that does not depend on any SAE, for interpretability metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.activations import Source
from sae.metrics.interpretability import Similarity, cosine_similarity

if TYPE_CHECKING:
    from sae.evaluation.samples import Samples

REACH = 4
"""Tokens on each side of a token that describe its context."""


@dataclass(frozen=True)
class SampleSimilarity:
    """Similarity by the true codes of a world, or on text by the tokens around a position.

    A run and its baselines share one similarity, because the embeddings of a model with random
    weights mean nothing.

    Attributes:
        embedding: the input embedding of the model that the run reads [vocabulary, width]. No
            layer and no SAE influences it. None without a model.
    """

    embedding: Tensor | None = None

    @classmethod
    def from_source(cls, source: Source) -> SampleSimilarity:
        """Return the similarity for a run on `source`, which must be set up."""
        text = source.text_model()
        if text is None:
            return cls()
        return cls(text.model.model.get_input_embeddings().weight.detach())

    @property
    def description(self) -> str:
        """A few words on the basis of the comparison."""
        if self.embedding is None:
            return "the cosine of true codes"
        return f"the model's embeddings of {2 * REACH + 1} tokens around"

    def of_samples(self, source: Source, samples: Samples) -> Similarity | None:
        """Return the similarity of the rows in `samples`; None if nothing describes them.

        Args:
            source: the source that the samples come from, which may be a baseline's.
            samples: rows of that source.
        """
        true_codes = samples.true_codes()
        if true_codes is not None:
            return cosine_similarity(true_codes.to_dense())
        if self.embedding is None or source.text_model() is None:
            return None
        provenance = samples.provenance
        assert provenance is not None, "a model on text says where its activations came from"
        embedded = context_embedding(
            self.embedding,
            provenance["token"],
            provenance["document"],
            provenance["position"],
            reach=REACH,
        )
        # Embeddings share a large mean, which makes any two of them similar.
        return cosine_similarity(embedded - embedded.mean(0))


def context_embedding(
    embedding: Tensor, token: Tensor, document: Tensor, position: Tensor, *, reach: int
) -> Tensor:
    """Return the mean embedding of each token and its neighbours in the document.

    Args:
        embedding: [vocabulary, width].
        token: token ids, int64 [n]; the tokens of a document follow each other in order.
        document: document of each token, int64 [n].
        position: position of each token in its document, int64 [n].
        reach: largest distance in positions of a neighbour. Positions that are not among the n
            tokens are ignored.

    Returns:
        Mean embeddings, float32 [n, width] on the CPU.
    """
    embedded = embedding[token.to(embedding.device)].float().cpu()
    total, count, n = embedded.clone(), torch.ones(len(embedded), 1), len(embedded)
    for step in range(1, min(reach, n - 1) + 1):
        earlier, later = slice(0, n - step), slice(step, n)
        distance = position[later] - position[earlier]  # at least `step` within one document
        near = (document[earlier] == document[later]) & (distance <= reach)
        near = near[:, None].float()
        total[earlier] += near * embedded[later]
        total[later] += near * embedded[earlier]
        count[earlier] += near
        count[later] += near
    return total / count

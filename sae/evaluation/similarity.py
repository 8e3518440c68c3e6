"""What says how alike two samples are, for the scores of `psychophysics`: no autoencoder's word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.activations import Source
from sae.metrics.interpretability import Similarity, cosine_similarity

if TYPE_CHECKING:
    from sae.evaluation.samples import Sample

REACH = 4


@dataclass(frozen=True)
class Judge:
    """By the true codes of a world, and on text by what stands around a token.

    A run and its controls have one judge, since a model that never learnt embeds nothing.

    Attributes:
        embedding: of every token id, [vocabulary, width]: the input embedding of the model that
            the run reads. No layer and no autoencoder had a say in it. None without a model.
    """

    embedding: Tensor | None = None

    @classmethod
    def of(cls, source: Source) -> Judge:
        """The judge of a run on `source`, which is set up."""
        text = source.text_model()
        if text is None:
            return cls()
        return cls(text.model.model.get_input_embeddings().weight.detach())

    @property
    def says(self) -> str:
        """What it goes by."""
        if self.embedding is None:
            return "the cosine of true codes"
        return f"the model's embeddings of {2 * REACH + 1} tokens around"

    def similarity(self, source: Source, sample: Sample) -> Similarity | None:
        """Of the rows that `sample` kept of `source`; None where it has nothing to go by."""
        z = sample.true_codes()
        if z is not None:
            return cosine_similarity(z.to_dense())
        if self.embedding is None or source.text_model() is None:
            return None
        provenance = sample.provenance
        assert provenance is not None, "a model on text says where its activations came from"
        around = context_embedding(
            self.embedding,
            provenance["token"],
            provenance["document"],
            provenance["position"],
            reach=REACH,
        )
        # Embeddings share a large mean, by which any two are alike.
        return cosine_similarity(around - around.mean(0))


def context_embedding(
    embedding: Tensor, token: Tensor, document: Tensor, position: Tensor, *, reach: int
) -> Tensor:
    """Mean embedding of each token and of those at most `reach` before or after it in its document,
    float32 [n, width].

    embedding [vocabulary, width]; token, document and position int64 [n], as in a `Batch`: tokens
    of a document follow each other, in their order. What is not there counts for nothing.
    """
    own = embedding[token.to(embedding.device)].float().cpu()
    total, count, n = own.clone(), torch.ones(len(own), 1), len(own)
    for step in range(1, min(reach, n - 1) + 1):
        early, late = slice(0, n - step), slice(step, n)
        apart = position[late] - position[early]  # at least `step` in one document
        near = (document[early] == document[late]) & (apart <= reach)
        near = near[:, None].float()
        total[early] += near * own[late]
        total[late] += near * own[early]
        count[early] += near
        count[late] += near
    return total / count

"""Similarity between samples that does not depend on an SAE."""

from __future__ import annotations

import torch

from sae.evaluation.baseline_sources import MatchedGaussian
from sae.evaluation.evaluate import evaluate
from sae.evaluation.samples import Samples
from sae.evaluation.similarity import SampleSimilarity, context_embedding
from sae.worlds import SparseSuperposition


def test_context_embedding_by_hand():
    embedding = torch.tensor([[0.0, 1.0], [6.0, 0.0], [0.0, 12.0]])
    token = torch.tensor([1, 2, 0, 1, 1])
    document = torch.tensor([0, 0, 0, 0, 1])
    position = torch.tensor([0, 1, 3, 4, 5])  # position 2 is ignored
    around = context_embedding(embedding, token, document, position, reach=1)
    expected = [[3.0, 6.0], [3.0, 6.0], [3.0, 0.5], [3.0, 0.5], [6.0, 0.0]]
    assert around.tolist() == expected
    # Distance is measured in positions of the text, not rows of the batch: 1 and 3 are 2 apart.
    around = context_embedding(embedding, token, document, position, reach=2)
    expected = [[3.0, 6.0], [2.0, 13 / 3], [2.0, 13 / 3], [3.0, 0.5], [6.0, 0.0]]
    torch.testing.assert_close(around, torch.tensor(expected))


def test_similarity_on_text_uses_the_models_embedding_for_baselines_too(make_source, sae):
    source = make_source()
    similarity = SampleSimilarity.from_source(source)
    assert similarity.description == "the model's embeddings of 9 tokens around"
    untrained = source.random_weights_twin()
    untrained.setup()
    cosines = []
    for each in (source, untrained):
        samples = Samples()
        evaluate(sae, each, max_tokens=100, downstream_tokens=0, samples=samples)
        i, j = torch.arange(50), torch.arange(50, 100)
        cosines.append(similarity.of_samples(each, samples)(i, j))
    assert torch.equal(*cosines)
    table = source.model.model.get_input_embeddings().weight
    columns = [samples.provenance[name] for name in ("token", "document", "position")]
    around = context_embedding(table, *columns, reach=4)
    around = (around - around.mean(0)).double()
    expected = torch.cosine_similarity(around[:50], around[50:])
    torch.testing.assert_close(cosines[0], expected)
    gaussian = MatchedGaussian(source, rows=64)
    gaussian.setup()
    samples = Samples()
    evaluate(sae, gaussian, max_tokens=64, samples=samples)
    assert similarity.of_samples(gaussian, samples) is None


def test_similarity_in_a_world_uses_the_true_codes(sae):
    world = SparseSuperposition(d_in=16, n_features=32, mean_active=3)
    similarity, samples = SampleSimilarity.from_source(world), Samples()
    evaluate(sae, world, max_tokens=64, samples=samples)
    z = world.codes("held_out", 0, 64, 0).to_dense().double()
    i, j = torch.arange(32), torch.arange(32, 64)
    cosines = similarity.of_samples(world, samples)(i, j)
    torch.testing.assert_close(cosines, torch.cosine_similarity(z[:32], z[32:], eps=1e-12))
    assert similarity.description == "the cosine of true codes"
    gaussian, samples = MatchedGaussian(world, rows=64), Samples()
    gaussian.setup()
    evaluate(sae, gaussian, max_tokens=64, samples=samples)
    assert similarity.of_samples(gaussian, samples) is None

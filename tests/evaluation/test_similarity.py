from __future__ import annotations

import torch

from sae.evaluation.baseline_sources import MatchedGaussian
from sae.evaluation.evaluate import evaluate
from sae.evaluation.samples import Sample
from sae.evaluation.similarity import Judge, context_embedding
from sae.worlds import SparseSuperposition


def test_context_embedding_by_hand():
    embedding = torch.tensor([[0.0, 1.0], [6.0, 0.0], [0.0, 12.0]])
    token = torch.tensor([1, 2, 0, 1, 1])
    document = torch.tensor([0, 0, 0, 0, 1])
    position = torch.tensor([0, 1, 3, 4, 5])  # what stood at 2 does not count
    around = context_embedding(embedding, token, document, position, reach=1)
    expected = [[3.0, 6.0], [3.0, 6.0], [3.0, 0.5], [3.0, 0.5], [6.0, 0.0]]
    assert around.tolist() == expected
    # How far apart two are is by their place in the text, not in the batch: 1 and 3.
    around = context_embedding(embedding, token, document, position, reach=2)
    expected = [[3.0, 6.0], [2.0, 13 / 3], [2.0, 13 / 3], [3.0, 0.5], [6.0, 0.0]]
    torch.testing.assert_close(around, torch.tensor(expected))


def test_on_text_it_goes_by_the_models_embedding_for_a_control_too(make_source, sae):
    source = make_source()
    judge = Judge.of(source)
    assert judge.says == "the model's embeddings of 9 tokens around"
    untrained = source.random_weights_twin()
    untrained.setup()
    alike = []
    for some in (source, untrained):
        sample = Sample()
        evaluate(sae, some, max_tokens=100, downstream_tokens=0, sample=sample)
        i, j = torch.arange(50), torch.arange(50, 100)
        alike.append(judge.similarity(some, sample)(i, j))
    assert torch.equal(*alike)
    table = source.model.model.get_input_embeddings().weight
    columns = [sample.provenance[name] for name in ("token", "document", "position")]
    around = context_embedding(table, *columns, reach=4)
    around = (around - around.mean(0)).double()
    expected = torch.cosine_similarity(around[:50], around[50:])
    torch.testing.assert_close(alike[0], expected)
    gaussian = MatchedGaussian(source, rows=64)
    gaussian.setup()
    sample = Sample()
    evaluate(sae, gaussian, max_tokens=64, sample=sample)
    assert judge.similarity(gaussian, sample) is None


def test_in_a_world_it_goes_by_the_true_codes(sae):
    world = SparseSuperposition(d_in=16, n_features=32, mean_active=3)
    judge, sample = Judge.of(world), Sample()
    evaluate(sae, world, max_tokens=64, sample=sample)
    z = world.codes("held_out", 0, 64, 0).to_dense().double()
    i, j = torch.arange(32), torch.arange(32, 64)
    found = judge.similarity(world, sample)(i, j)
    torch.testing.assert_close(found, torch.cosine_similarity(z[:32], z[32:], eps=1e-12))
    assert judge.says == "the cosine of true codes"
    gaussian, sample = MatchedGaussian(world, rows=64), Sample()
    gaussian.setup()
    evaluate(sae, gaussian, max_tokens=64, sample=sample)
    assert judge.similarity(gaussian, sample) is None

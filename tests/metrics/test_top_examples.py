"""Top examples of latents against a search over all positions."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from sae import UserError
from sae.metrics.examples import (
    Example,
    LatentExamples,
    read_examples,
    top_examples,
    write_examples,
)
from sae.metrics.top_activations import TopTable
from sae_kernels.codes import Codes

EVERYTHING = 10**9


def by_hand(sae, source, n, window):
    """Return the best (value, tokens, activations, document, position) of each latent.

    This looks at every position of every context, one by one.
    """
    best = [[] for _ in range(sae.d_sae)]
    for contexts in source.contexts("held_out"):
        (acts,) = source.model.activations(contexts.tokens, contexts.attention_mask).values()
        # The batches must be those of the tested code, because others round ties differently.
        codes = sae.encode(acts[contexts.position_mask]).to_dense().detach()
        values = torch.zeros(*contexts.tokens.shape, sae.d_sae)
        values[contexts.position_mask] = codes
        for row, latent in itertools.product(range(len(values)), range(sae.d_sae)):
            value, peak = values[row, :, latent].max(0)
            if value <= 0:
                continue
            peak, tokens, document = int(peak), contexts.tokens[row], contexts.document[row]
            near = [
                i
                for i in range(max(0, peak - window), min(len(tokens), peak + window + 1))
                if contexts.attention_mask[row, i] and document[i] == document[peak]
            ]
            best[latent].append(
                (
                    value.item(),
                    tokens[near].tolist(),
                    values[row, near, latent].tolist(),
                    document[peak].item(),
                    contexts.position[row, peak].item(),
                    tuple(tokens[i].item() for i in near if peak - 8 < i <= peak),
                )
            )
    result = []
    for candidates in best:
        candidates.sort(key=lambda candidate: -candidate[0])
        seen, distinct = set(), []
        for candidate in candidates:
            if candidate[-1] not in seen:
                seen.add(candidate[-1])
                distinct.append(candidate[:-1])
        result.append(distinct[:n])
    return result


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize(("n", "window"), [(1, 0), (3, 4), (100, 30)], ids=["1", "3", "all"])
def test_top_examples_equal_a_search_by_hand(make_source, sae, packing, n, window):
    source = make_source(packing=packing)
    expected = by_hand(sae, source, n, window)
    latents = top_examples(sae, source, per_latent=n, window=window, max_tokens=EVERYTHING)
    assert [entry.latent for entry in latents] == list(range(sae.d_sae))
    assert sum(map(len, expected)) > 40
    tokenizer = source.model.tokenizer
    for latent, candidates in zip(latents, expected, strict=True):
        places = [(example.document, example.position) for example in latent.examples]
        assert places == [candidate[3:] for candidate in candidates]
        for example, (value, tokens, activations, *_) in zip(
            latent.examples, candidates, strict=True
        ):
            assert max(example.activations) == pytest.approx(value, abs=1e-3)
            assert example.activations == pytest.approx(activations, abs=1e-3)
            text = [token.strip() for token in example.tokens]
            assert text == tokenizer.convert_ids_to_tokens(tokens)
        best = candidates[0][0] if candidates else 0
        assert latent.max_activation == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("outlier_norm", [None, 1.1], ids=str)
def test_frequency_is_a_share_of_counted_positions(make_source, sae, outlier_norm):
    source = make_source(outlier_norm=outlier_norm)
    fired = []
    for contexts in source.contexts("held_out"):
        (acts,) = source.model.activations(contexts.tokens, contexts.attention_mask).values()
        x = acts[contexts.position_mask]
        _, inlier = source.rule.activation_masks({"": x})
        assert bool(inlier.all()) == (outlier_norm is None)
        fired.append(sae.encode(x[inlier]).to_dense() != 0)
    expected = torch.cat(fired).double().mean(0)
    latents = top_examples(sae, source, max_tokens=EVERYTHING)
    assert [latent.frequency for latent in latents] == pytest.approx(expected.tolist())


def test_chosen_latents_get_the_same_examples_as_among_all(make_source, sae):
    source = make_source()
    every = top_examples(sae, source, max_tokens=EVERYTHING)
    assert top_examples(sae, source, latents=[40, 3], max_tokens=EVERYTHING) == [
        every[40],
        every[3],
    ]


def test_stops_after_max_tokens(make_source, sae):
    source = make_source(packing="document")
    documents = {
        example.document
        for latent in top_examples(sae, source, per_latent=99, max_tokens=1)
        for example in latent.examples
    }
    assert len(documents) <= source.model_batch_size


def test_unknown_latent_raises_user_error(make_source, sae):
    with pytest.raises(UserError, match="latent 48 does not exist: this SAE has 0 to 47"):
        top_examples(sae, make_source(), latents=[48])


def contexts_of(tokens):
    shape = tokens.shape
    return SimpleNamespace(
        tokens=tokens,
        attention_mask=torch.ones(shape, dtype=torch.int64),
        document=torch.arange(shape[0])[:, None].expand(shape),
        position=torch.arange(shape[1]).expand(shape),
    )


def merged(batches, n, window=3):
    """Return the best values of a latent in batches of (tokens, values), each [rows, context]."""
    table = TopTable(torch.tensor([0]), 2, n, window)
    for tokens, values in batches:
        codes = Codes(values.reshape(-1, 1), torch.zeros(values.numel(), 1, dtype=torch.int64), 2)
        table.update(codes, torch.arange(values.numel()), contexts_of(tokens))
    return [example[1] for example in table.rows()[0]]


def test_repeated_text_gives_only_its_strongest_example():
    same = torch.arange(4).repeat(3, 1)
    other = torch.arange(10, 14)[None]
    weak, strong = torch.tensor([[0, 0, 0, 1.0]]), torch.tensor([[0, 0, 0, 5.0]])
    first = (torch.cat([same, other]), torch.cat([weak, 2 * weak, weak, 1.5 * weak]))
    assert merged([first], n=3) == [2.0, 1.5]
    assert merged([first, (same[:1], strong)], n=3) == [5.0, 1.5]
    assert merged([first, (same[:1], weak)], n=3) == [2.0, 1.5]


def test_context_gives_at_most_one_example():
    tokens = torch.arange(6)[None]
    assert merged([(tokens, torch.tensor([[1.0, 3.0, 0.0, 2.0, 3.0, 0.0]]))], n=5) == [3.0]


@pytest.mark.parametrize("parts", [1, 2, 5, 20], ids=str)
def test_examples_do_not_depend_on_batches(parts):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, (20, 6), generator=generator)  # so few tokens that text repeats
    values = torch.randn(20, 6, generator=generator).relu()
    batches = list(zip(tokens.chunk(parts), values.chunk(parts), strict=True))
    assert merged(batches, n=4) == merged([(tokens, values)], n=4)


def test_ragged_codes_give_the_same_table():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(12).reshape(2, 6)
    values = torch.randn(12, 3, generator=generator).relu()
    indices = torch.rand(12, 7, generator=generator).argsort(1)[:, :3]
    fires = values != 0
    offsets = torch.nn.functional.pad(fires.sum(1).cumsum(0), (1, 0))
    tables = []
    for codes in (Codes(values, indices, 7), Codes(values[fires], indices[fires], 7, offsets)):
        tables.append(TopTable(torch.arange(7), 7, 2, 3))
        tables[-1].update(codes, torch.arange(12), contexts_of(tokens))
    assert tables[0].rows() == tables[1].rows()
    assert any(tables[0].rows())


def test_word_pieces_appear_as_in_the_text():
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sae.metrics.examples import _TokenText

    vocabulary = {token: i for i, token in enumerate(["[UNK]", "a", "play", "##ing", "."])}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
    ids = tokenizer("play playing.", add_special_tokens=False)["input_ids"]
    assert _TokenText(tokenizer)(ids) == [" play", " play", "ing", "."]


def test_text_of_an_example_marks_the_peak():
    example = Example([" the", " cat", "\n sat"], [0.0, 2.0, 1.0], 0, 1)
    assert str(example) == "the« cat» sat"


def test_examples_survive_writing_and_reading(tmp_path):
    latents = [
        LatentExamples(3, 0.25, 2.0, [Example(["a\u2028b", " \n\x85é"], [0.0, 2.0], 7, 9)]),
        LatentExamples(4, 0.0, 0.0, []),
    ]
    path = tmp_path / "examples.jsonl"
    write_examples(latents, path)
    assert read_examples(path) == latents
    lines = path.read_text(encoding="utf-8").split("\n")
    assert list(json.loads(lines[0])) == ["latent", "frequency", "max_activation", "examples"]
    assert [file.name for file in tmp_path.iterdir()] == ["examples.jsonl"]
    path.write_text(lines[0] + "\n" + lines[1][:9], encoding="utf-8")
    with pytest.raises(
        UserError, match=r"examples\.jsonl line 2 does not hold a latent's examples"
    ):
        read_examples(path)

"""Batches of full contexts: their rows, resuming, and running the model again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
import torch

from sae.activations import Contexts, ModelActivations, Stream
from sae.activations.full_contexts import split_contexts
from sae.errors import UserError
from sae.worlds import SparseSuperposition
from tiny_models import positions

Make = Callable[..., ModelActivations]
SIZE, BATCHES, CONTEXT = 40, 5, 16


def stream(source: ModelActivations, seed: int = 3) -> Stream:
    return Stream(source, batch_size=SIZE, block_batches=BATCHES, seed=seed, full_contexts=True)


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_context_of_a_block_is_handed_out_once_in_shuffled_order(
    make_source: Make, family: str, packing: str
) -> None:
    batches = list(islice(stream(make_source(family, packing=packing)), 3 * BATCHES))
    source, seen = make_source(family, packing=packing), []
    for index in range(3):
        contexts = source.train_contexts(index, SIZE * BATCHES)
        rows = contexts.position_mask.split(1)
        in_order = [
            [
                (int(d), int(p))
                for d, p in zip(
                    c.document[c.position_mask], c.position[c.position_mask], strict=True
                )
            ]
            for c in (contexts.rows(slice(i, i + 1)) for i in range(len(rows)))
        ]
        mine = batches[BATCHES * index : BATCHES * (index + 1)]
        handed_out = [place for batch in mine for place in positions(batch)]
        order = torch.randperm(len(in_order), generator=stream(source)._generator(index))
        assert handed_out == sum((in_order[i] for i in order.tolist()), [])
        begun = 0
        for i, batch in enumerate(mine):  # share i starts after i * SIZE positions
            assert i * SIZE <= begun < i * SIZE + CONTEXT
            begun += len(batch)
        assert len(mine[-1]) < SIZE + 2 * CONTEXT
        seen.append(handed_out)
    assert source.counts.kept == sum(map(len, seen)) and source.counts.tail == 0
    other = list(islice(stream(make_source(family, packing=packing), seed=4), BATCHES))
    assert [positions(b) for b in other] != [positions(b) for b in batches[:BATCHES]]


def test_split_contexts_covers_every_context_without_empty_parts() -> None:
    counted = torch.tensor([9, 10, 1, 8, 2])
    counts = torch.arange(10) < counted[:, None]
    contexts = Contexts(*[counts.long()] * 2, counts, *[counts.long()] * 2, counted[:, None])
    late = 0
    for seed in range(20):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        shares = split_contexts(contexts, 10, 2, torch.Generator().manual_seed(seed))
        assert torch.equal(torch.cat([share.start for share in shares])[:, 0], counted[order])
        assert [share.position_mask.sum().item() for share in shares] == [
            share.start.sum().item() for share in shares
        ]
        assert len(shares) == 2 and all(map(len, shares))
        late += int(
            counted[order][:-1].sum() >= 20
        )  # the last context starts after 2 * 10 positions
    assert late > 0


def test_full_context_batch_depends_only_on_its_index(make_source: Make) -> None:
    straight = stream(make_source("llama"))
    batches = list(islice(straight, 12))
    halfway = stream(make_source("llama"))
    list(islice(halfway, 7))
    resumed = stream(make_source("llama"))
    resumed.load_state_dict(halfway.state_dict())
    resumed.first_block()
    assert resumed._first is None, "a block is kept that no iteration uses"
    for got, want in zip(islice(resumed, 5), batches[7:], strict=True):
        assert positions(got) == positions(want)
        assert torch.equal(got.acts["layers.1"], want.acts["layers.1"])
        assert torch.equal(got.model_pass.logits, want.model_pass.logits)


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_activations_and_logits_equal_a_plain_forward_pass(make_source: Make, packing: str) -> None:
    source = make_source("llama", packing=packing, hooks=["layers.2", "layers.0"])
    for batch in islice(stream(source), 3):
        run = batch.model_pass
        whole = source.model.model(
            run.tokens, attention_mask=run.attention_mask, output_hidden_states=True
        )
        for hook, layer in (("layers.0", 1), ("layers.1", 2)):
            if hook in batch.acts:
                want = whole.hidden_states[layer][run.where]
                torch.testing.assert_close(batch.acts[hook], want)
        assert torch.equal(run.tokens[run.where], batch.provenance["token"])
        real = run.attention_mask.bool() & (run.tokens > 2)  # ids after <s>, </s> and <unk>
        torch.testing.assert_close(run.logits, whole.logits[:, :-1][real[:, 1:]])
        assert torch.equal(run.targets, run.tokens[:, 1:][real[:, 1:]])
        assert len(run.targets) < real.numel()


def test_bad_positions_are_dropped_and_not_replaced(make_source: Make) -> None:
    source = make_source("llama", outlier_norm=1.1)
    everything = list(islice(stream(make_source("llama")), BATCHES))
    kept = 0
    for batch, full in zip(islice(stream(source), BATCHES), everything, strict=True):
        norm = full.acts["layers.1"].norm(dim=1)
        inside = norm <= 1.1 * norm.median()
        assert positions(batch) == positions(full.rows(inside.nonzero().squeeze(1)))
        model_pass = batch.model_pass
        assert torch.equal(model_pass.acts["layers.1"], batch.acts["layers.1"])
        assert torch.equal(model_pass.tokens[model_pass.where], batch.provenance["token"])
        kept += len(batch)
    counts = source.counts
    assert counts.kept == kept and counts.outliers == sum(map(len, everything)) - kept > 0


def test_rerun_replaces_activations_and_is_differentiable(make_source: Make) -> None:
    source = make_source("llama", hooks=["layers.2", "layers.0", "layers.1"])
    hooks_there = lambda: sum(len(module._forward_hooks) for module in source.model.model.modules())
    run, before = next(iter(stream(source))).model_pass, hooks_there()
    acts = run.acts["layers.1"]
    logits, behind = run({"layers.1": acts})
    torch.testing.assert_close(logits, run.logits)
    assert list(behind) == ["layers.2"]
    torch.testing.assert_close(behind["layers.2"], run.acts["layers.2"])

    prediction = (2 * acts).requires_grad_()
    logits, behind = run({"layers.1": prediction})
    assert (logits - run.logits).abs().max() > 1e-3
    (logits.square().sum() + behind["layers.2"].sum()).backward()
    assert (prediction.grad.abs().amax(dim=1) > 0).all()
    assert not any(p.requires_grad or p.grad is not None for p in source.model.model.parameters())
    assert hooks_there() == before


def test_run_survives_to_and_is_dropped_by_rows(make_source: Make) -> None:
    batch = next(iter(stream(make_source("llama"))))
    assert batch.to("cpu").model_pass is batch.model_pass is not None
    assert batch.rows(slice(0, 3)).model_pass is None


def test_full_contexts_refuses_unsuitable_sources_and_settings(make_source: Make) -> None:
    with pytest.raises(UserError, match=r"predicts no tokens; use a model with a next-token head"):
        stream(make_source("bert"))
    with pytest.raises(UserError, match=r"batch_size=14 is less than the 15 tokens"):
        Stream(make_source("llama"), batch_size=14, block_batches=2, full_contexts=True)
    world = SparseSuperposition(d_in=4, n_features=8, mean_active=2.0)
    world.setup()
    with pytest.raises(ValueError, match="full_contexts=True needs split"):
        Stream(
            make_source("llama"),
            split="held_out",
            batch_size=20,
            block_batches=2,
            full_contexts=True,
        )
    with pytest.raises(UserError, match="source=SparseSuperposition has none"):
        Stream(world, batch_size=14, block_batches=2, full_contexts=True)

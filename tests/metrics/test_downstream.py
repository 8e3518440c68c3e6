"""Downstream metrics against a model that is run by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from sae import SAE, UserError
from sae.autoencoder.sites import Crosscoder, CrossLayerTranscoder, SkipTranscoder, Transcoder
from sae.autoencoder.sparsity import TopK
from sae.metrics.downstream import downstream

EVERYTHING = 10**9


def clean_activations(source):
    acts = []
    for contexts in source.contexts("held_out"):
        harvested = source.model.activations(contexts.tokens, contexts.attention_mask)
        acts.append(next(iter(harvested.values()))[contexts.position_mask])
    return torch.cat(acts)


def by_hand(source, replacement):
    """Run the model with `replacement` at the counted positions of the hook.

    Returns:
        Final hidden states at counted positions, and logits and targets where the next token is a
        word; the last two are None for a model without a head.
    """
    model = source.model.model
    module = model.get_submodule(next(iter(source.model.modules.values())))
    hiddens, logits, targets = [], [], []
    for contexts in source.contexts("held_out"):

        def swap(_module, _args, output, counts=contexts.position_mask):
            acts = output if isinstance(output, torch.Tensor) else output[0]
            new = acts.clone()
            for row, counted in enumerate(counts):
                new[row, counted] = replacement(acts[row][counted])
            return new if isinstance(output, torch.Tensor) else (new, *output[1:])

        handle = module.register_forward_hook(swap)
        with torch.no_grad():
            inputs = {"input_ids": contexts.tokens, "attention_mask": contexts.attention_mask}
            out = model(**inputs, output_hidden_states=True)
        handle.remove()
        hiddens.append(out.hidden_states[-1][contexts.position_mask])
        if source.model.has_head:
            # Ids from 4 on are words; 0 is <unk>, which does not occur in this text.
            word = contexts.attention_mask[:, 1:].bool() & (contexts.tokens[:, 1:] >= 4)
            logits.append(out.logits[:, :-1][word])
            targets.append(contexts.tokens[:, 1:][word])
    if not logits:
        return torch.cat(hiddens), None, None
    return torch.cat(hiddens), torch.cat(logits), torch.cat(targets)


@pytest.mark.parametrize(("packing", "chunk"), [("packed", 1 << 25), ("document", 100)])
def test_downstream_equals_the_model_run_by_hand(make_source, sae, monkeypatch, packing, chunk):
    monkeypatch.setattr("sae.metrics.downstream._CHUNK", chunk)
    source = make_source("causal", packing=packing)
    acts = clean_activations(source)
    mean = acts.double().mean(0)
    got = downstream(sae, source, mean=mean, max_tokens=EVERYTHING)

    hidden, logits, targets = by_hand(source, lambda x: x)
    hidden_sae, logits_sae, _ = by_hand(source, lambda x: sae(x).detach())
    hidden_mean, logits_mean, _ = by_hand(source, lambda x: mean.float().repeat(len(x), 1))
    _, logits_zero, _ = by_hand(source, torch.zeros_like)
    ce = {
        "ce_clean": cross_entropy(logits, targets).item(),
        "ce_sae": cross_entropy(logits_sae, targets).item(),
        "ce_mean_ablation": cross_entropy(logits_mean, targets).item(),
        "ce_zero_ablation": cross_entropy(logits_zero, targets).item(),
    }
    kl = kl_div(
        logits_sae.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="batchmean"
    )
    expected = {
        **ce,
        "output_cosine": cosine_similarity(hidden, hidden_sae).mean().item(),
        "output_cosine_mean_ablation": cosine_similarity(hidden, hidden_mean).mean().item(),
        "kl_sae": kl.item(),
        "ce_difference": ce["ce_sae"] - ce["ce_clean"],
        "loss_recovered": (ce["ce_zero_ablation"] - ce["ce_sae"])
        / (ce["ce_zero_ablation"] - ce["ce_clean"]),
        "downstream_tokens": len(acts),
        "ce_tokens": len(targets),
    }
    assert got.metrics() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    sums, every_context = got.document_sums, list(source.contexts("held_out"))
    documents = torch.cat([c.document.flatten() for c in every_context]).unique()
    assert len(documents) > 2

    def per_document(values, where):
        """Add up values that come context by context, at the positions that `where` gives."""
        ids = torch.cat([contexts.document[where(contexts)] for contexts in every_context])
        return torch.stack([values[ids == number].double().sum() for number in documents])

    counted = lambda contexts: contexts.position_mask

    def predicting(contexts):
        positions, _ = source.rule.next_tokens(contexts.tokens, contexts.attention_mask)
        return positions

    assert torch.equal(sums["tokens"], per_document(torch.ones(len(acts)), counted))
    assert torch.equal(sums["targets"], per_document(torch.ones(len(targets)), predicting))
    expected_sums = per_document(cosine_similarity(hidden, hidden_sae), counted)
    torch.testing.assert_close(sums["cosine_sae"], expected_sums, rtol=1e-4, atol=1e-4)
    losses = cross_entropy(logits_sae, targets, reduction="none")
    expected_sums = per_document(losses, predicting)
    torch.testing.assert_close(sums["ce_sae"], expected_sums, rtol=1e-4, atol=1e-4)
    assert sums["kl_sae"].sum().item() == pytest.approx(expected["kl_sae"] * len(targets), rel=1e-4)
    assert len({round(value, 4) for value in ce.values()}) == 4


def test_a_perfect_sae_changes_nothing(make_source):
    class Copy(torch.nn.Module):
        def __init__(self, like):
            super().__init__()
            self.site, self.W_dec = like.site, like.W_dec

        def forward(self, x):
            return x

    copy = Copy(SAE(16, TopK(d_sae=4, k=1)))
    got = downstream(copy, make_source(), mean=torch.zeros(16), max_tokens=EVERYTHING)
    assert got.output_cosine == pytest.approx(1, abs=1e-9)
    assert got.loss_recovered == pytest.approx(1, abs=1e-9)
    assert got.kl_sae == pytest.approx(0, abs=1e-9)
    # With a mean of 0 the two ablations are the same.
    assert got.ce_mean_ablation == pytest.approx(got.ce_zero_ablation, rel=1e-9)
    assert got.output_cosine_mean_ablation < 0.9


def test_encoder_model_has_no_losses(make_source, sae):
    source = make_source("encoder")
    mean = clean_activations(source).double().mean(0)
    got = downstream(sae, source, mean=mean, max_tokens=EVERYTHING)
    assert set(got.metrics()) == {
        "output_cosine",
        "output_cosine_mean_ablation",
        "downstream_tokens",
    }
    hidden, _, _ = by_hand(source, lambda x: x)
    hidden_sae, _, _ = by_hand(source, lambda x: sae(x).detach())
    expected = cosine_similarity(hidden, hidden_sae).mean().item()
    assert got.output_cosine == pytest.approx(expected, rel=1e-5)


def test_excluded_positions_keep_their_activations_and_are_not_scored(make_source, sae):
    source = make_source(skip_first=20)
    acts = clean_activations(source)
    got = downstream(sae, source, mean=acts.double().mean(0), max_tokens=EVERYTHING)
    hidden, _, _ = by_hand(source, lambda x: x)
    hidden_sae, _, _ = by_hand(source, lambda x: sae(x).detach())
    assert got.downstream_tokens == len(acts) == len(hidden)
    expected = cosine_similarity(hidden, hidden_sae).mean().item()
    assert got.output_cosine == pytest.approx(expected, rel=1e-5)


def test_outliers_are_excluded_as_in_training(make_source, sae):
    def tokens(source):
        return downstream(sae, source, mean=torch.zeros(16), max_tokens=EVERYTHING)

    everything, without = tokens(make_source()), tokens(make_source(outlier_norm=1.2))
    assert 0 < without.downstream_tokens < everything.downstream_tokens
    assert without.ce_tokens == everything.ce_tokens
    assert without.ce_zero_ablation != everything.ce_zero_ablation


def test_padding_is_no_target_even_if_its_id_is_a_word(make_source, sae):
    source = make_source(packing="document")
    mean = torch.zeros(16)
    expected = downstream(sae, source, mean=mean, max_tokens=EVERYTHING).ce_tokens
    source.rule = replace(source.rule, excluded=np.zeros_like(source.rule.excluded))
    assert downstream(sae, source, mean=mean, max_tokens=EVERYTHING).ce_tokens == expected


def test_stops_after_max_tokens(make_source, sae):
    source = make_source()
    got = downstream(sae, source, mean=torch.zeros(16), max_tokens=100)
    assert 100 <= got.downstream_tokens < 100 + 5 * 24


def test_empty_split_raises_user_error(make_source, sae, monkeypatch):
    source = make_source()
    monkeypatch.setattr(source, "contexts", lambda split: iter([]))
    with pytest.raises(UserError, match="split=held_out has no counted position"):
        downstream(sae, source, mean=torch.zeros(16))


HOOKS = ["layers.0.mlp.in", "layers.0.mlp", "layers.1.mlp.in", "layers.1.mlp"]
SEVERAL = {
    "transcoder": Transcoder(read=HOOKS[2], predict=HOOKS[3]),
    "skip transcoder": SkipTranscoder(read=HOOKS[2], predict=HOOKS[3]),
    "crosscoder": Crosscoder(read=(HOOKS[1], HOOKS[3])),
    "cross-layer transcoder": CrossLayerTranscoder(
        read=(HOOKS[0], HOOKS[2]), predict=(HOOKS[1], HOOKS[3])
    ),
}


def random_sae(site):
    bound = site.bind(dict.fromkeys(HOOKS, 16))
    sae = SAE(bound.d_in, TopK(d_sae=48, k=6), site=bound, d_out=bound.d_out)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        sae.mask_decoder()
    return sae


@pytest.mark.parametrize("site", SEVERAL)
def test_every_predicted_hook_is_replaced_from_clean_activations(make_source, site):
    sae, source = random_sae(SEVERAL[site]), make_source(hooks=HOOKS, skip_first=3)
    read, written = sae.site.reads, sae.site.predicts
    mean = torch.randn(sae.d_out, generator=torch.Generator().manual_seed(2)).double()
    got = downstream(sae, source, mean=mean, max_tokens=EVERYTHING)
    model, modules = source.model.model, source.model.modules
    cosines, tokens = {"sae": 0.0, "mean": 0.0}, 0
    for contexts in source.contexts("held_out"):
        inputs = {"input_ids": contexts.tokens, "attention_mask": contexts.attention_mask}
        counts = contexts.position_mask
        acts = source.model.activations(contexts.tokens, contexts.attention_mask)
        clean = model(**inputs, output_hidden_states=True).hidden_states[-1][counts]
        x = torch.cat([acts[hook][counts] for hook in read], dim=1)
        for name, replacement in (("sae", sae(x)), ("mean", mean.float().expand(len(x), -1))):
            handles = []
            for hook, part in zip(written, replacement.split(16, dim=1), strict=True):

                def swap(_module, _args, output, part=part, counts=counts):
                    new = output.clone()
                    new[counts] = part
                    return new

                handles.append(model.get_submodule(modules[hook]).register_forward_hook(swap))
            with torch.no_grad():
                out = model(**inputs, output_hidden_states=True).hidden_states[-1][counts]
            for handle in handles:
                handle.remove()
            cosines[name] += cosine_similarity(clean, out).double().sum().item()
        tokens += len(x)
    assert got.downstream_tokens == tokens
    assert got.output_cosine == pytest.approx(cosines["sae"] / tokens, rel=1e-5)
    assert got.output_cosine_mean_ablation == pytest.approx(cosines["mean"] / tokens, rel=1e-5)
    assert got.ce_sae != got.ce_clean and got.ce_zero_ablation not in (got.ce_clean, got.ce_sae)


def test_counted_positions_depend_on_all_hooks_as_in_training(make_source):
    sae, source = random_sae(SEVERAL["transcoder"]), make_source(hooks=HOOKS, outlier_norm=1.3)
    one_hook = make_source(hooks=HOOKS[2:], outlier_norm=1.3)
    tokens = [
        downstream(sae, each, mean=torch.zeros(16), max_tokens=EVERYTHING).downstream_tokens
        for each in (source, one_hook)
    ]
    expected = len(source.block("held_out", 0, EVERYTHING, 0))
    assert tokens[0] == pytest.approx(expected, rel=0.2) and tokens[0] < tokens[1]

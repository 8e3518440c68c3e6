"""Compare EndToEnd with a model run with plain hooks and a dense autoencoder, in float64."""

from __future__ import annotations

import pytest
import torch
from loss_cases import activations, assert_same, gradients, make_learner, top
from torch import Tensor

from sae import SAE, UserError
from sae.activations import FileText, ModelActivations, Stream
from sae.autoencoder.losses import FVU, EndToEnd
from sae.autoencoder.sites import Autoencoder, Crosscoder, Site, SkipTranscoder
from sae.autoencoder.sparsity import TopK
from sae.training import Learner, OptimConfig
from tiny_models import save_tiny, some_documents

K = 5
HOOKS = ["layers.2", "layers.0.mlp.in", "layers.0.mlp", "layers.0", "layers.1"]
SITES: dict[str, tuple[Site, list[str]]] = {  # with the hooks of the later layers
    "autoencode": (Autoencoder(hook="layers.0"), ["layers.1", "layers.2"]),
    "skip": (
        SkipTranscoder(read="layers.0.mlp.in", predict="layers.0.mlp"),
        ["layers.0", "layers.1", "layers.2"],
    ),
    "crosscode": (Crosscoder(read=("layers.2", "layers.0")), ["layers.1"]),
}
LAYER = {f"layers.{n}": n for n in range(3)}
TERMS = [EndToEnd(), EndToEnd(kind="ce"), EndToEnd(downstream=0.7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return save_tiny("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def make_source(folder, tmp_path):
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(some_documents(60)))

    def make(**settings) -> ModelActivations:
        text = FileText([str(tmp_path / "text.txt")])
        settings = {"hooks": HOOKS, "context_size": 12, "skip_first": 2} | settings
        source = ModelActivations(str(folder), text=text, **settings)
        source.setup()
        source.model.model.double()
        with torch.no_grad():  # a random model has nearly equal logits
            for parameter in source.model.model.parameters():
                parameter *= 3
        return source

    return make


def learner_on(source: ModelActivations, site: Site, term: EndToEnd) -> Learner:
    bound = site.bind(source.widths)
    rule = TopK(d_sae=36, k=K)
    sae = SAE(bound.d_in, rule, site=bound, d_out=bound.d_out, seed=2, dtype=torch.float64)
    learner = Learner(sae, [term], OptimConfig(lr=1e-2), total_steps=20, dead_after=10**9)
    learner.initialise(source.block("train", 0, 100, 0).acts)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.1 * noise
    return learner


def run_by_hand(model, run, predictions: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return logits and outputs of all layers, with predictions inserted position by position."""
    blocks, handles, layers = model.transformer.h, [], {}

    def put(hook):
        def function(_module, _args, output):
            acts = output[0] if isinstance(output, tuple) else output
            new = [list(row) for row in acts]
            for n, (row, column) in enumerate(zip(*run.where, strict=True)):
                new[row][column] = predictions[hook][n]
            new = torch.stack([torch.stack(row) for row in new])
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return function

    def note(n):
        def function(_module, _args, output):
            layers[n] = output[0] if isinstance(output, tuple) else output

        return function

    for hook in predictions:
        module = blocks[0].mlp if hook == "layers.0.mlp" else blocks[LAYER[hook]]
        handles.append(module.register_forward_hook(put(hook)))
    handles += [block.register_forward_hook(note(n)) for n, block in enumerate(blocks)]
    try:
        return model(run.tokens, attention_mask=run.attention_mask).logits, layers
    finally:
        for handle in handles:
            handle.remove()


def by_hand(learner: Learner, source, batch, term, behind) -> tuple[Tensor, dict[str, Tensor]]:
    model, run, site = source.model.model, batch.model_pass, learner.sae.site
    shifts = learner.shifts()
    scaled = {h: batch.acts[h] * learner.scale[h] + shifts[h] for h in site.hooks}
    p = {name: t.detach().clone().requires_grad_() for name, t in learner.sae.named_parameters()}
    x = torch.cat([scaled[hook] for hook in site.reads], dim=1)
    pre = (x if site.skip else x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    y_hat = top(pre, K) @ p["W_dec"] + p["b_dec"]
    if site.skip:
        y_hat = y_hat + x @ p["W_skip"]
    parts = {hook: y_hat[:, 16 * i : 16 * i + 16] for i, hook in enumerate(site.predicts)}
    parts = {hook: (y - shifts[hook]) / learner.scale[hook] for hook, y in parts.items()}
    clean, clean_layers = run_by_hand(model, run, {})
    spliced, layers = run_by_hand(model, run, parts)
    losses = []
    for row in range(len(run.tokens)):
        for column in range(run.tokens.shape[1] - 1):
            target = run.tokens[row, column + 1]
            if not run.attention_mask[row, column + 1] or target == 0:  # padding, or <|end|>
                continue
            before, after = clean[row, column].softmax(0), spliced[row, column].softmax(0)
            kl = (before * (before / after).log()).sum()
            losses.append(kl if term.kind == "kl" else -after[target].log())
    value = torch.stack(losses).mean()
    if term.downstream:
        for hook in behind:
            y, z = clean_layers[LAYER[hook]][run.where], layers[LAYER[hook]][run.where]
            fvu = (y - z).square().sum() / (y - y.mean(0)).square().sum()
            value = value + term.downstream * fvu / len(behind)
    return value, dict(zip(p, torch.autograd.grad(value, list(p.values())), strict=True))


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("term", TERMS, ids=["kl", "ce", "downstream"])
@pytest.mark.parametrize("where", SITES)
def test_value_and_gradients_equal_a_model_run_by_hand(make_source, where, term, packing):
    site, behind = SITES[where]
    source = make_source(packing=packing)
    learner = learner_on(source, site, term)
    assert len(set(learner.scale.values())) == len(learner.scale)
    batch = next(iter(Stream(source, batch_size=30, block_batches=2, full_contexts=True)))
    expected = by_hand(learner, source, batch, term, behind)
    assert expected[0] > 0.02
    assert all(grad.abs().max() > 1e-6 for grad in expected[1].values())
    for backend in ("auto", "reference"):
        learner.backend = backend
        _, loss = learner(batch.acts, batch.model_pass)
        loss.backward()
        assert_same((loss.detach(), gradients(learner)), expected)


def test_the_loss_is_the_weighted_sum_with_other_terms(make_source):
    source = make_source()
    batch = next(iter(Stream(source, batch_size=30, block_batches=2, full_contexts=True)))
    values, grads = [], []
    for terms in ([FVU()], [EndToEnd()], [FVU(), EndToEnd(coefficient=0.25)]):
        learner = learner_on(source, SITES["autoencode"][0], terms[0])
        learner.losses = terms
        learner.warmup_weights = torch.ones(len(terms), dtype=torch.float64)
        _, loss = learner(batch.acts, batch.model_pass)
        loss.backward()
        values.append(loss.detach())
        grads.append(gradients(learner))
    expected = {name: grad + 0.25 * grads[1][name] for name, grad in grads[0].items()}
    assert_same((values[2], grads[2]), (values[0] + 0.25 * values[1], expected))


def test_each_micro_batch_uses_its_own_model_run(make_source):
    """A step on two micro-batches uses the mean of their losses."""
    source = make_source()
    site = SITES["autoencode"][0]
    first, second = (
        batch
        for batch in Stream(source, batch_size=30, block_batches=2, batches=2, full_contexts=True)
    )
    learner, other = (learner_on(source, site, EndToEnd()) for _ in range(2))
    learner.step(first.acts, second.acts, model_passes=[first.model_pass, second.model_pass])
    other.update_schedules()
    loss = sum(other(batch.acts, batch.model_pass)[1] for batch in (first, second)) / 2
    loss.backward()
    other.optimizer.step()
    other.sae.mask_decoder()
    for name, parameter in learner.sae.named_parameters():
        torch.testing.assert_close(parameter, other.sae.get_parameter(name), msg=name)
    assert learner.tokens == len(first) + len(second)


def test_a_model_in_low_precision_is_compared_in_fp32(make_source):
    source = make_source()
    source.model.model.bfloat16()
    batch = next(iter(Stream(source, batch_size=30, block_batches=2, full_contexts=True)))
    assert batch.acts["layers.0"].dtype == batch.model_pass.logits.dtype == torch.bfloat16
    term = EndToEnd(downstream=0.5)
    learner = learner_on(source, SITES["autoencode"][0], term)
    forward, _ = learner(batch.acts, batch.model_pass)

    class Fixed:
        """A model run with fixed results, in a given dtype."""

        def __init__(self, dtype: torch.dtype) -> None:
            self.acts = {hook: x.to(dtype) for hook, x in batch.acts.items()}
            self.logits, self.targets = batch.model_pass.logits.to(dtype), batch.model_pass.targets

        def __call__(self, predictions):
            behind = {hook: x.flip(0) for hook, x in self.acts.items() if hook == "layers.2"}
            return self.logits.flip(0), behind

    values = []
    for dtype in (torch.bfloat16, torch.float32):
        forward.model_pass = Fixed(dtype)
        values.append(term(forward))
    assert values[0].dtype == torch.float32 and torch.equal(*values)


def test_missing_model_and_wrong_settings_are_refused(make_source):
    learner = make_learner(TopK(d_sae=36, k=4), [EndToEnd()])
    with pytest.raises(UserError, match="EndToEnd runs a language model, and this batch comes"):
        learner(activations())
    with pytest.raises(UserError, match="EndToEnd.kind='js' is not known; give 'kl' or 'ce'"):
        EndToEnd(kind="js")
    with pytest.raises(UserError, match=r"EndToEnd.downstream=-1 is negative"):
        EndToEnd(downstream=-1)
    source = make_source(hooks=["layers.0", "layers.1"])
    batch = next(iter(Stream(source, batch_size=30, block_batches=2, full_contexts=True)))
    learner = learner_on(source, Autoencoder(hook="layers.1"), EndToEnd(downstream=1.0))
    with pytest.raises(UserError, match=r"downstream=1.0 needs activations after layers.1; add"):
        learner(batch.acts, batch.model_pass)

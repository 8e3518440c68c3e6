"""Test Matryoshka: fixed and random nested prefixes of the dictionary."""

from __future__ import annotations

import copy

import pytest
import torch
from loss_cases import (
    BATCH,
    SITES,
    activations,
    batch_top,
    check,
    dense,
    make_learner,
    top,
    value_and_gradients,
)

from sae import UserError
from sae.autoencoder.losses import FVU, L0, AuxK, Matryoshka
from sae.autoencoder.losses.matryoshka import drawn_ends
from sae.autoencoder.sparsity import BatchTopK, JumpReLU, TopK

D_SAE, K = 36, 6


def prefix(acts: torch.Tensor, end: int, layers: int) -> torch.Tensor:
    """Return acts [batch, d_sae] without latents from `end` on; layers share `end` equally."""
    size = acts.shape[1] // layers
    within = [layer + layers * place < end for layer in range(layers) for place in range(size)]
    return torch.where(torch.tensor(within), acts, 0)


def mean_fvu(plain, acts, ends, layers=1, weights=None) -> torch.Tensor:
    each = torch.stack([plain.fvu(prefix(acts, end, layers)) for end in ends])
    weights = torch.tensor(weights or [1.0] * len(ends), dtype=each.dtype)
    return (weights * each).sum() / weights.sum()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, [2, 4, 9, 18, 36]),  # 36 / 16 = 2.25, 36 / 8 = 4.5
        ({"prefixes": [1, 5, 20]}, [1, 5, 20, 36]),
        ({"prefixes": [7, 36], "weights": [3.0, 0.5]}, [7, 36]),
        ({"shares": [0.25, 0.75]}, [9, 27, 36]),
        ({"prefixes": [36]}, [36]),
    ],
    ids=["default", "numbers", "weights", "shares", "all latents"],
)
def test_value_and_gradients_equal_the_mean_over_prefixes(site, settings, ends):
    term = Matryoshka(**settings)
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=K), [term], site), activations()
    plain = dense(learner, acts)
    layers = learner.sae.site.groups
    value = mean_fvu(plain, top(plain.pre, K, layers), ends, layers, settings.get("weights"))
    check(learner, term, acts, value, plain)


def test_ragged_codes_with_empty_rows_and_padding():
    term = Matryoshka(prefixes=[4, 10])
    learner, acts = make_learner(BatchTopK(d_sae=D_SAE, k=2), [term]), activations()
    with torch.no_grad():
        acts["a"][3] = learner.sae.b_dec  # pre-activations are b_enc, below 0: no latent is active
        learner.sae.b_enc -= learner.sae.b_enc.max() + 0.1
    plain = dense(learner, acts)
    fires = batch_top(plain.pre, 2)
    assert not fires[3].any() and fires.gt(0).sum() == 2 * BATCH
    check(learner, term, acts, mean_fvu(plain, fires, [4, 10, 36]), plain)

    with torch.no_grad():
        learner.sae.b_enc -= 3.0
    plain = dense(learner, acts)
    assert 0 < plain.pre.gt(0).sum() < 2 * BATCH, "no row has padding"
    check(learner, term, acts, mean_fvu(plain, plain.pre.relu(), [4, 10, 36]), plain)


def test_one_prefix_of_all_latents_equals_fvu():
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=K), [FVU()]), activations()
    value, grads, forward = value_and_gradients(learner, Matryoshka(prefixes=[D_SAE]), acts)
    torch.testing.assert_close(value, FVU()(forward).detach(), rtol=1e-12, atol=0)
    _, fvu, _ = value_and_gradients(learner, FVU(), acts)
    for name in grads:
        torch.testing.assert_close(grads[name], fvu[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("site", ["autoencode", "cross-layer"])
def test_random_prefixes_depend_on_the_step(site):
    term = Matryoshka(random=4, weights=(1, 2, 3, 4), seed=5)
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=K), [term], site), activations()
    layers, seen = learner.sae.site.groups, set()
    for step in (0, 7, 8):
        learner.steps = step
        learner.update_schedules()
        drawn = drawn_ends(D_SAE, 4, 0.5, 5, torch.tensor(step)).tolist()
        plain = dense(learner, acts)
        ends = [*drawn, D_SAE]
        value = mean_fvu(plain, top(plain.pre, K, layers), ends, layers, [1.0, 2.0, 3.0, 4.0])
        check(learner, term, acts, value, plain)
        seen.add(tuple(drawn))
    assert len(seen) == 3


def test_draws_are_distinct_ascending_and_a_function_of_seed_and_step():
    draws = [
        tuple(drawn_ends(40, 6, 0.5, seed, torch.tensor(step)).tolist())
        for seed in (0, 1)
        for step in range(300)
    ]
    for ends in draws:
        assert len(ends) == 5 and sorted(set(ends)) == list(ends)
        assert ends[0] >= 1 and ends[-1] < 40
    assert len(set(draws)) > 590, "draws must differ between steps and seeds"
    assert draws[17] == tuple(drawn_ends(40, 6, 0.5, 0, torch.tensor(17)).tolist())
    assert drawn_ends(3, 3, 0.5, 0, torch.tensor(4)).tolist() == [1, 2], "all possible ends"


@pytest.mark.parametrize("power", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_ends_are_drawn_with_the_documented_probability(power):
    n = 20_000
    first = torch.tensor(
        [drawn_ends(20, 2, power, 3, torch.tensor(step)).item() for step in range(n)]
    )
    seen = torch.bincount(first, minlength=20)[1:].double() / n
    law = torch.arange(20).double().pow(power).diff() / 19**power
    # Each share has a standard deviation of at most 0.0035; all 19 must be within 4 of them.
    assert (seen - law).abs().max() < 4 * (law.max() / n) ** 0.5
    if power == 1.0:
        assert law.max() - law.min() < 1e-12


@pytest.mark.parametrize("rule", ["topk", "jumprelu"])
def test_a_resumed_run_draws_the_same_prefixes(rule):
    rules = {"topk": TopK(d_sae=D_SAE, k=K), "jumprelu": JumpReLU(d_sae=D_SAE)}
    terms = [Matryoshka(random=3), AuxK(k_aux=4)] + [L0()] * (rule == "jumprelu")
    batches = [activations()] * 8
    straight = make_learner(rules[rule], terms, dead_after=60)
    for number, batch in enumerate(batches):
        if number == 5:
            saved = copy.deepcopy(straight.state_dict())
            moments = copy.deepcopy(straight.optimizer.state_dict())
        straight.step(batch)
    resumed = make_learner(rules[rule], terms, dead_after=60)
    resumed.load_state_dict(saved)
    resumed.optimizer.load_state_dict(moments)
    for batch in batches[5:]:
        resumed.step(batch)
    for name, value in straight.sae.state_dict().items():
        assert torch.equal(value, resumed.sae.state_dict()[name]), name
    assert straight.pop_metrics()["loss"] == resumed.pop_metrics()["loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixes": [4, 4]}, r"prefixes=\[4, 4\] must be positive and ascending"),
        ({"prefixes": [0, 4]}, r"prefixes=\[0, 4\] must be positive"),
        ({"prefixes": []}, r"prefixes=\[\] must be"),
        ({"shares": [0.5, 0.25]}, r"shares=\[0.5, 0.25\] must be ascending"),
        ({"shares": [0.5, 1.5]}, "at most 1"),
        ({"random": 1}, "random=1; give at least 2"),
        ({"random": -2}, "random=-2"),
        ({"random": 3, "prefixes": [4]}, "leave one out"),
        ({"power": 0.0}, "power=0.0 must be positive"),
        ({"weights": [1.0, 0.0]}, r"weights=\[1.0, 0.0\] must be positive"),
        ({"prefixes": [4, 37]}, "prefixes ends with 37, above d_sae=36"),
        ({"random": 37}, "random=37 exceeds d_sae=36"),
        ({"prefixes": [4], "weights": [1.0]}, "weights has 1 numbers for 2 prefixes"),
        ({"random": 4, "weights": [1.0, 1.0]}, "weights has 2 numbers for 4 prefixes"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(UserError, match=f"Matryoshka.*{message}"):
        make_learner(TopK(d_sae=D_SAE, k=K), [Matryoshka(**settings)])

"""Every combination of site, sparsity rule and losses works or is refused.

A combination that works trains, resumes, is saved and loaded, and has the gradients of the dense
reference.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from package_classes import classes_of_the_package
from sae import SAE, UserError
from sae.autoencoder.losses import (
    FVU,
    L0,
    L1,
    MSE,
    AuxK,
    EveryPrefix,
    GateReconstruction,
    LossTerm,
    Matryoshka,
    MultiK,
    PreActs,
)
from sae.autoencoder.sites import (
    Autoencoder,
    Crosscoder,
    CrossLayerTranscoder,
    Site,
    SkipTranscoder,
    Transcoder,
)
from sae.autoencoder.sparsity import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    Sparsity,
    TopK,
    Unrolled,
)
from sae.training import Learner, OptimConfig
from sae_kernels import reference

WIDTHS = {"a": 8, "b": 8, "c": 6, "d": 6}
SITES: list[Site] = [
    Autoencoder(hook="a"),
    Transcoder(read="a", predict="c"),
    SkipTranscoder(read="a", predict="c"),
    Crosscoder(read=("a", "b", "c")),
    CrossLayerTranscoder(read=("a", "b"), predict=("c", "d")),
]
K = {"d_sae": 48, "k": 4}
RULES: list[Sparsity] = [
    TopK(**K, k_start=12, k_anneal=0.8),
    BatchTopK(**K),
    AbsTopK(**K),
    GroupMax(**K),
    MatchingPursuit(**K),
    ReLU(d_sae=48),
    JumpReLU(d_sae=48),
    Gated(d_sae=48),
    Unrolled(d_sae=48),
]
# Penalties for the rules that need one to be sparse.
PENALTIES: dict[str, list[LossTerm]] = {
    "ReLU": [L1(target_l0=4, decoder_norm=True, p_end=0.5)],
    "JumpReLU": [L0(target_l0=4)],
    "Gated": [L1(target_l0=4), GateReconstruction()],
    "Unrolled": [L0(kind="tanh", target_l0=4)],
}
LOSSES: dict[str, list[LossTerm]] = {
    "plain": [MSE(coefficient=0.1)],
    "Matryoshka": [Matryoshka()],
    "Matryoshka-random": [Matryoshka(random=3)],
    "EveryPrefix": [EveryPrefix()],
    "MultiK": [FVU(), MultiK(factor=2)],
    "PreActs": [FVU(), PreActs(coefficient=0.1)],
    "AuxK": [FVU(), AuxK()],
}
STEPS, HALF = 30, 15


def expected_error(site: Site, rule: Sparsity, losses: str) -> str | None:
    """Return the text of the error, or None if the choice is valid."""
    grouped, name = isinstance(site, CrossLayerTranscoder), type(rule).__name__
    if losses in ("PreActs", "AuxK") and grouped:
        return f"{losses} does not apply to CrossLayerTranscoder"
    if losses == "PreActs" and name == "AbsTopK":
        return "AbsTopK has none, because it is signed"
    if losses == "MultiK" and name in PENALTIES:
        return "MultiK needs a rule with k"
    if losses == "EveryPrefix" and name not in (
        "TopK",
        "AbsTopK",
        "GroupMax",
        "MatchingPursuit",
    ):
        return "EveryPrefix needs the same k for every token"
    return None


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    matrices = {
        hook: draw(12, width) * unit for unit, (hook, width) in enumerate(WIDTHS.items(), 1)
    }
    features = [draw(16, 12).relu() for _ in range(STEPS)]
    return [{hook: x @ matrix for hook, matrix in matrices.items()} for x in features]


DATA = batches()


def make_learner(
    site: Site, rule: Sparsity, terms: Sequence[LossTerm], backend: str = "auto"
) -> Learner:
    bound = site.bind(WIDTHS)
    sae = SAE(bound.d_in, rule, site=bound, d_out=bound.d_out, dtype=torch.float64, seed=1)
    return Learner(
        sae,
        terms,
        OptimConfig(lr=1e-2, unit_norm=not isinstance(rule, ReLU)),
        total_steps=STEPS,
        dead_after=48,
        refresh_steps=3,
        backend=backend,
    )


def gradients(trained: Learner, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of one loss, and the loss; change nothing."""
    _, loss = trained(batch)
    loss.backward()
    grads = {"loss": loss.detach()}
    for name, parameter in trained.sae.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        by_latent = grad.t() if name == "W_enc" else grad
        parts = getattr(parameter, "row_grads", None)
        grads[name] = reference.dense_gradient(by_latent.shape, by_latent, parts)
    trained.optimizer.zero_grad()
    return grads


def test_all_registered_sites_and_rules_are_tested():
    assert {type(site).__name__ for site in SITES} == set(classes_of_the_package(Site))
    assert {type(rule).__name__ for rule in RULES} == set(classes_of_the_package(Sparsity))
    assert set(PENALTIES) == {type(rule).__name__ for rule in RULES if rule.needs_penalty}


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize(
    ("site", "rule"),
    itertools.product(SITES, RULES),
    ids=[f"{type(s).__name__}-{type(r).__name__}" for s, r in itertools.product(SITES, RULES)],
)
def test_combination_trains_resumes_and_exports_or_is_refused(
    tmp_path: Path, site: Site, rule: Sparsity, losses: str
) -> None:
    terms = [*LOSSES[losses], *PENALTIES.get(type(rule).__name__, [])]
    if (message := expected_error(site, rule, losses)) is not None:
        with pytest.raises(UserError, match=message):
            make_learner(site, rule, terms)
        return

    straight = make_learner(site, rule, terms)
    straight.initialise(DATA[0])
    with torch.no_grad():
        straight.sae.b_enc[::16] -= 99  # dead from the start, unless the rule does not read b_enc
    start = {name: p.clone() for name, p in straight.sae.named_parameters()}
    errors = []
    for number, batch in enumerate(DATA):
        if number == HALF:
            saved = copy.deepcopy(straight.state_dict())
            moments = copy.deepcopy(straight.optimizer.state_dict())
        straight.step(batch)
        errors.append(straight.pop_metrics()["fvu"])
    assert sum(errors[-5:]) < 0.9 * sum(errors[:5])
    # With tied weights, only AuxK and PreActs read b_enc.
    tied = isinstance(rule, MatchingPursuit) and isinstance(site, Autoencoder | Crosscoder)
    for name, parameter in straight.sae.named_parameters():
        unused = tied and name == "b_enc" and losses not in ("AuxK", "PreActs")
        assert unused == torch.equal(parameter, start[name]), name

    resumed, dense = make_learner(site, rule, terms), make_learner(site, rule, terms, "reference")
    for trained in (resumed, dense):
        trained.load_state_dict(copy.deepcopy(saved))
    resumed.optimizer.load_state_dict(moments)
    if losses in ("AuxK", "PreActs"):
        assert resumed.dead.is_dead().any(), "without dead latents these terms are 0"
    actual, expected = gradients(resumed, DATA[0]), gradients(dense, DATA[0])
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-11, msg=name)
    for batch in DATA[HALF:]:
        resumed.step(batch)
    for name, value in straight.state_dict().items():
        if torch.is_tensor(value) and not name.startswith("running_means"):
            assert torch.equal(value, resumed.state_dict()[name]), name

    exported = straight.export()
    exported.save(tmp_path / "sae")
    loaded = SAE.load(tmp_path / "sae")
    x, _ = exported.site.pair(DATA[0])
    y_hat = loaded(x)
    assert torch.equal(y_hat, exported(x))
    _, scaled, _ = straight.predict(DATA[0])
    factors = exported.site.column_scales(straight.scale)[1]
    torch.testing.assert_close(y_hat * factors, scaled, rtol=1e-8, atol=1e-10)

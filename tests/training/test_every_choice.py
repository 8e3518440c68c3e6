"""Every site with every sparsity rule and every losses: it trains, resumes, is saved and loaded,
and its gradients are those of the dense reference; or it is refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
# What keeps a rule sparse where it does not do so itself.
PENALTIES: dict[str, list[LossTerm]] = {
    "ReLU": [L1(target_l0=4, decoder_norm=True, p_end=0.5)],
    "JumpReLU": [L0(target_l0=4)],
    "Gated": [L1(target_l0=4), GateReconstruction()],
    "Unrolled": [L0(kind="tanh", target_l0=4)],
}
OBJECTIVES: dict[str, list[LossTerm]] = {
    "plain": [MSE(coefficient=0.1)],
    "Matryoshka": [Matryoshka()],
    "Matryoshka-random": [Matryoshka(random=3)],
    "EveryPrefix": [EveryPrefix()],
    "MultiK": [FVU(), MultiK(factor=2)],
    "PreActs": [FVU(), PreActs(coefficient=0.1)],
    "AuxK": [FVU(), AuxK()],
}
STEPS, HALF = 30, 15


def refused(site: Site, rule: Sparsity, losses: str) -> str | None:
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
    into = {hook: draw(12, width) * unit for unit, (hook, width) in enumerate(WIDTHS.items(), 1)}
    hidden = [draw(16, 12).relu() for _ in range(STEPS)]
    return [{hook: some @ matrix for hook, matrix in into.items()} for some in hidden]


DATA = batches()


def learner(
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


def gradients(made: Learner, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of one loss, and the loss; change nothing."""
    _, loss = made(batch)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in made.sae.named_parameters():
        turned = name == "W_enc"
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        by_latent = grad.t() if turned else grad
        parts = getattr(parameter, "row_grads", None)
        found[name] = reference.dense_gradient(by_latent.shape, by_latent, parts)
    made.optimizer.zero_grad()
    return found


def test_every_site_and_rule_of_the_package_is_tested():
    assert {type(site).__name__ for site in SITES} == set(Site.registry)
    assert {type(rule).__name__ for rule in RULES} == set(Sparsity.registry)
    assert set(PENALTIES) == {type(rule).__name__ for rule in RULES if rule.needs_penalty}


@pytest.mark.parametrize("losses", OBJECTIVES)
@pytest.mark.parametrize(
    ("site", "rule"),
    itertools.product(SITES, RULES),
    ids=[f"{type(s).__name__}-{type(r).__name__}" for s, r in itertools.product(SITES, RULES)],
)
def test_choice(tmp_path: Path, site: Site, rule: Sparsity, losses: str) -> None:
    terms = [*OBJECTIVES[losses], *PENALTIES.get(type(rule).__name__, [])]
    if (complaint := refused(site, rule, losses)) is not None:
        with pytest.raises(UserError, match=complaint):
            learner(site, rule, terms)
        return

    straight = learner(site, rule, terms)
    straight.initialise(DATA[0])
    with torch.no_grad():
        straight.sae.b_enc[::16] -= 99  # dead from the start, except where b_enc is not read
    start = {name: p.clone() for name, p in straight.sae.named_parameters()}
    errors = []
    for number, batch in enumerate(DATA):
        if number == HALF:
            saved = copy.deepcopy(straight.state_dict())
            moments = copy.deepcopy(straight.optimizer.state_dict())
        straight.step(batch)
        errors.append(straight.pop_metrics()["fvu"])
    assert sum(errors[-5:]) < 0.9 * sum(errors[:5])
    pursuit = isinstance(rule, MatchingPursuit)
    tied = pursuit and isinstance(site, Autoencoder | Crosscoder)  # then b_enc is for AuxK alone
    for name, parameter in straight.sae.named_parameters():
        unread = tied and name == "b_enc" and losses not in ("AuxK", "PreActs")
        assert unread == torch.equal(parameter, start[name]), name

    resumed, dense = learner(site, rule, terms), learner(site, rule, terms, "reference")
    for made in (resumed, dense):
        made.load_state_dict(copy.deepcopy(saved))
    resumed.optimizer.load_state_dict(moments)
    if losses in ("AuxK", "PreActs"):
        assert resumed.dead.is_dead().any(), "these terms would be 0"
    found, wanted = gradients(resumed, DATA[0]), gradients(dense, DATA[0])
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)
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

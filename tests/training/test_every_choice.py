"""Every combination of site, sparsity rule and losses works or is refused.

A combination that works trains, resumes, is saved and loaded, and has the gradients of the dense
reference.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae import SAE, UserError
from sae.autoencoder.losses import L0, L1, LossTerm
from sae.autoencoder.sites import Autoencoder, Crosscoder, CrossLayerTranscoder, Site
from sae.autoencoder.sparsity import MatchingPursuit, ReLU, Sparsity
from sae.training import Learner, OptimConfig
from tiny import LOSSES, all_rules, all_sites, dense_gradients, penalties, tiny_learner, tiny_sae

WIDTHS = {"a": 8, "b": 8, "c": 6, "d": 6}
SITES = all_sites(("a", "b"), ("c", "d"))
RULES = all_rules(48, k=4, TopK={"k_start": 12, "k_anneal": 0.8})
PENALTIES = {name: penalties(rule, target_l0=4) for name, rule in RULES.items()}
PENALTIES["ReLU"] = [L1(target_l0=4, decoder_norm=True, p_end=0.5)]
PENALTIES["Unrolled"] = [L0(kind="tanh", target_l0=4)]
STEPS, HALF = 30, 15


def expected_error(site: Site, rule: Sparsity, losses: str) -> str | None:
    """Return the text of the error, or None if the choice is valid."""
    grouped, name = isinstance(site, CrossLayerTranscoder), type(rule).__name__
    if losses in ("PreActs", "AuxK") and grouped:
        return f"{losses} does not apply to CrossLayerTranscoder"
    if losses == "PreActs" and name == "AbsTopK":
        return "AbsTopK has none, because it is signed"
    if losses == "MultiK" and rule.needs_penalty:
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
    optim = OptimConfig(lr=1e-2, unit_norm=not isinstance(rule, ReLU))
    settings = {"total_steps": STEPS, "dead_after": 48, "refresh_steps": 3, "backend": backend}
    return tiny_learner(tiny_sae(rule, site, WIDTHS), terms, optim, **settings)


def loss_and_gradients(trained: Learner, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss of a batch and its gradients; change nothing."""
    _, loss = trained(batch)
    loss.backward()
    tensors = {"loss": loss.detach(), **dense_gradients(trained.sae)}
    trained.optimizer.zero_grad()
    return tensors


def combinations() -> Iterator:
    """Yield all; `make test` runs those of Autoencoder and, for other sites, the plain loss."""
    for site, rule, losses in itertools.product(SITES, RULES, LOSSES):
        in_make_test = site == "Autoencoder" or losses == "plain"
        yield pytest.param(site, rule, losses, marks=[] if in_make_test else pytest.mark.slow)


@pytest.mark.parametrize(("site", "rule", "losses"), combinations())
def test_combination_trains_resumes_and_exports_or_is_refused(
    tmp_path: Path, site: str, rule: str, losses: str
) -> None:
    terms = [*LOSSES[losses], *PENALTIES[rule]]
    site, rule = SITES[site], RULES[rule]
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
    # The largest, because the error falls at once and then rises as a penalty takes latents away.
    assert sum(errors[-5:]) / 5 < 0.9 * max(errors[:5])
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
        assert resumed.dead.still_dead().any(), "without dead latents these terms are 0"
    actual, expected = loss_and_gradients(resumed, DATA[0]), loss_and_gradients(dense, DATA[0])
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
    if (shifts := straight.shifts()) is not None:
        scaled = scaled - torch.cat([shifts[hook] for hook in exported.site.predicts])
    torch.testing.assert_close(y_hat * factors, scaled, rtol=1e-8, atol=1e-10)

"""Test the weights of penalties during a run, and which combinations of terms are refused."""

from __future__ import annotations

import pytest
import torch
from loss_cases import (
    activations,
    dense,
    make_learner,
)

from sae import UserError
from sae.autoencoder.losses import FVU, L0, L1, GateReconstruction, Matryoshka
from sae.autoencoder.sparsity import Gated, JumpReLU, ReLU, TopK
from sae.training import OptimConfig
from sae.training.learner import check_losses, controlled_term

D_SAE = 36


class TestWeight:
    def test_weight_rises_from_0_over_the_warmup(self):
        """Compare the loss of each step with the scheduled weight."""
        terms = [FVU(), L1(coefficient=0.3, warmup=0.5)]
        learner = make_learner(
            ReLU(d_sae=D_SAE), terms, total_steps=10, optim=OptimConfig(lr=1e-9, unit_norm=False)
        )
        acts = activations()
        plain = dense(learner, acts)
        fvu = plain.fvu(plain.pre.relu()).item()
        l1 = (plain.pre.relu() * plain.norms).sum(1).mean().item()
        for weight in [0.2, 0.4, 0.6, 0.8, *[1.0] * 5]:
            learner.step(acts)
            assert learner.pop_metrics()["loss"] == pytest.approx(fvu + 0.3 * weight * l1, rel=1e-6)

    def test_without_warmup_the_weight_is_1_from_the_start(self):
        learner = make_learner(ReLU(d_sae=D_SAE), [L1(warmup=0.0)])
        learner.update_schedules()
        assert learner.warmup_weights.tolist() == [1.0]

    def test_a_resumed_run_continues_the_warmup(self):
        learner = make_learner(ReLU(d_sae=D_SAE), [FVU(), L1(warmup=0.5)], total_steps=20)
        acts = activations()
        for _ in range(4):
            learner.step(acts)
        resumed = make_learner(ReLU(d_sae=D_SAE), [FVU(), L1(warmup=0.5)], total_steps=20)
        resumed.load_state_dict(learner.state_dict())
        resumed.update_schedules()
        assert resumed.warmup_weights.tolist() == [1.0, 0.5]

    def test_the_loss_uses_the_coefficient_of_the_controller(self):
        learner = make_learner(ReLU(d_sae=D_SAE), [L1(coefficient=0.3, target_l0=2, warmup=0)])
        acts = activations()
        for _ in range(3):
            learner.update_schedules()
            forward, loss = learner(acts)
            expected = learner.controller.coefficient() * L1()(forward)
            torch.testing.assert_close(loss.detach(), expected.detach())
            learner.step(acts)
            assert (
                learner.pop_metrics()["penalty_coefficient"]
                == learner.controller.coefficient().item()
            )


@pytest.mark.parametrize(
    ("rule", "terms", "message"),
    [
        (TopK(d_sae=8, k=2), [FVU(), L1(target_l0=3)], "L1.target_l0=3: TopK fixes its L0 itself"),
        (ReLU(d_sae=8), [FVU(), L1(target_l0=8)], "L1.target_l0=8 must be below d_sae=8"),
        (ReLU(d_sae=8), [FVU()], "no penalty, and nothing else keeps ReLU sparse"),
        (JumpReLU(d_sae=8), [Matryoshka()], "no penalty, and nothing else keeps JumpReLU"),
        (
            JumpReLU(d_sae=8),
            [FVU(), L1(target_l0=3), L0(target_l0=3)],
            "several terms with target_l0",
        ),
        (
            TopK(d_sae=8, k=2),
            [FVU(), GateReconstruction()],
            "GateReconstruction trains gates",
        ),
    ],
    ids=["k", "width", "none", "none-jumprelu", "two", "gates"],
)
def test_invalid_combinations_of_terms_are_refused(rule, terms, message):
    with pytest.raises(UserError, match=message):
        make_learner(rule, terms)


def test_valid_combinations_of_terms_are_accepted():
    quadratic = L0(kind="quadratic", target_l0=3)
    assert controlled_term([FVU(), quadratic]) is None, "its minimum is at the target"
    assert controlled_term([FVU(), quadratic, L1(target_l0=3)]) == 2
    assert controlled_term([FVU(), L1()]) is None
    for rule, terms in (
        (TopK(d_sae=8, k=2), [FVU(), L1()]),
        (JumpReLU(d_sae=8), [FVU(), quadratic]),
        (Gated(d_sae=8), [FVU(), L1(target_l0=3), GateReconstruction()]),
    ):
        check_losses(make_learner(rule, terms).sae, terms)

"""Training has the same bits for every number of threads.

SAEs of a run that are trained in parallel rely on this.
"""

from __future__ import annotations

import pytest
import torch

from sae.autoencoder.losses import (
    FVU,
    L0,
    L1,
    AuxK,
    EveryPrefix,
    Matryoshka,
    PreActs,
)
from sae.autoencoder.sites import Autoencoder
from sae.metrics.fvu import FVU as HeldOutFVU
from sae.training import OptimConfig
from sae_kernels.deterministic_sum import deterministic_sum, sum_of_squares
from tiny import all_rules, penalties, tiny_learner, tiny_rule, tiny_sae

# 512 x 384 numbers are more than the 32,768 from which torch splits a sum between threads.
D_IN, D_SAE, BATCH, STEPS = 384, 512, 512, 4
RULES = all_rules(D_SAE, k=16, MatchingPursuit={"k": 4}, Unrolled={"layers": 2})
TERMS = {name: [FVU(), *penalties(rule, target_l0=16.0)] for name, rule in RULES.items()}
TERMS["TopK"] = TERMS["BatchTopK"] = [FVU(), AuxK()]
TERMS["JumpReLU"].append(PreActs())
CASES = {name: (rule, TERMS[name], {}) for name, rule in RULES.items()}
CASES["ReLU"][2]["clip_norm"] = 1e-4
TOPK, RELU, JUMPRELU = RULES["TopK"], RULES["ReLU"], RULES["JumpReLU"]
CASES |= {
    "clipped": (TOPK, [FVU(), AuxK()], {"clip_norm": 1e-4}),
    "moments": (TOPK, [FVU()], {"moments": "bfloat16"}),
    "signum": (TOPK, [FVU()], {"name": "signum"}),
    "muon": (TOPK, [FVU()], {"name": "muon"}),
    "p": (RELU, [FVU(), L1(coefficient=0.1, p_end=0.5, p_start_at=0.0)], {}),
    "tanh": (JUMPRELU, [FVU(), L0(target_l0=16.0, kind="tanh")], {}),
    "matryoshka": (TOPK, [Matryoshka(), AuxK()], {}),
    "every prefix": (tiny_rule("TopK", D_SAE, k=8), [EveryPrefix()], {}),
}

IN_MAKE_TEST = {"TopK", "BatchTopK", "JumpReLU", "clipped"}


def train(case: str, threads: int) -> dict[str, object]:
    """Return all state after a few steps: parameters, moments, counters, metrics, held-out FVU."""
    torch.set_num_threads(threads)
    rule, terms, optim = CASES[case]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(BATCH, D_IN, generator=generator) for _ in range(STEPS)]
    sae = tiny_sae(rule, Autoencoder(hook="x"), {"x": D_IN}, seed=0, dtype=torch.float32)
    settings = {"total_steps": STEPS, "dead_after": BATCH, "refresh_steps": 2}
    trained = tiny_learner(sae, terms, OptimConfig(**optim), **settings)
    trained.initialise({"x": batches[0]})
    for x in batches:
        trained.step({"x": x})
    fvu = HeldOutFVU(D_IN, torch.device("cpu"))
    fvu.update(*trained.predict({"x": batches[0]})[:2])
    state = {k: v for k, v in trained.state_dict().items() if isinstance(v, torch.Tensor)}
    for index, moments in trained.optimizer.state_dict()["state"].items():
        state |= {f"{index}.{k}": v for k, v in moments.items() if isinstance(v, torch.Tensor)}
    return {**state, "held out": torch.tensor(fvu.compute(), dtype=torch.float64)}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in IN_MAKE_TEST else pytest.mark.slow) for case in CASES],
)
def test_training_has_the_same_bits_on_one_two_and_three_threads(case):
    expected = train(case, 1)
    for threads in (2, 3):
        for name, value in train(case, threads).items():
            assert torch.equal(value.nan_to_num(), expected[name].nan_to_num()), (threads, name)


def test_deterministic_sums_are_exact_and_do_not_depend_on_threads():
    values = torch.randn(700_001, generator=torch.Generator().manual_seed(0))
    sums = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        sums.append(deterministic_sum(values).item())
    assert len(set(sums)) == 1
    assert sums[0] == pytest.approx(values.double().sum().item(), abs=1e-2)
    exact = torch.arange(100_003, dtype=torch.float64)
    assert deterministic_sum(exact).item() == 100_002 * 100_003 / 2
    assert deterministic_sum(exact[:5].reshape(1, 5)).item() == 10
    assert sum_of_squares(torch.tensor([[3.0, 4.0], [1.0, 2.0]])).item() == pytest.approx(30)
    assert sum_of_squares(torch.tensor([3.0, -4.0])).item() == 25

"""Training has the same bits for every number of threads.

SAEs of a run that are trained in parallel rely on this.
"""

from __future__ import annotations

import pytest
import torch

from sae.autoencoder import SAE
from sae.autoencoder.losses import (
    FVU,
    L0,
    L1,
    AuxK,
    EveryPrefix,
    GateReconstruction,
    Matryoshka,
    PreActs,
)
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    TopK,
    Unrolled,
)
from sae.metrics.fvu import FVU as HeldOutFVU
from sae.training import Learner, OptimConfig
from sae_kernels.deterministic_sum import deterministic_sum, sum_of_squares

# 512 x 384 numbers are more than the 32,768 from which torch splits a sum between threads.
D_IN, D_SAE, BATCH, STEPS = 384, 512, 512, 4
CASES = {
    "topk": (TopK(d_sae=D_SAE, k=16), [FVU(), AuxK()], {}),
    "clipped": (TopK(d_sae=D_SAE, k=16), [FVU(), AuxK()], {"clip_norm": 1e-4}),
    "moments": (TopK(d_sae=D_SAE, k=16), [FVU()], {"moments": "bfloat16"}),
    "signum": (TopK(d_sae=D_SAE, k=16), [FVU()], {"name": "signum"}),
    "muon": (TopK(d_sae=D_SAE, k=16), [FVU()], {"name": "muon"}),
    "batchtopk": (BatchTopK(d_sae=D_SAE, k=16), [FVU(), AuxK()], {}),
    "l1": (ReLU(d_sae=D_SAE), [FVU(), L1(target_l0=16.0)], {"clip_norm": 1e-4}),
    "p": (ReLU(d_sae=D_SAE), [FVU(), L1(coefficient=0.1, p_end=0.5, p_start_at=0.0)], {}),
    "jumprelu": (JumpReLU(d_sae=D_SAE), [FVU(), L0(target_l0=16.0), PreActs()], {}),
    "tanh": (JumpReLU(d_sae=D_SAE), [FVU(), L0(target_l0=16.0, kind="tanh")], {}),
    "gated": (Gated(d_sae=D_SAE), [FVU(), L1(target_l0=16.0), GateReconstruction()], {}),
    "matryoshka": (TopK(d_sae=D_SAE, k=16), [Matryoshka(), AuxK()], {}),
    "every prefix": (TopK(d_sae=D_SAE, k=8), [EveryPrefix()], {}),
    "abstopk": (AbsTopK(d_sae=D_SAE, k=16), [FVU()], {}),
    "groupmax": (GroupMax(d_sae=D_SAE, k=16), [FVU()], {}),
    "pursuit": (MatchingPursuit(d_sae=D_SAE, k=4), [FVU()], {}),
    "unrolled": (Unrolled(d_sae=D_SAE, layers=2), [FVU(), L1(target_l0=16.0)], {}),
}


def train(case: str, threads: int) -> dict[str, object]:
    """Return all state after a few steps: parameters, moments, counters, metrics, held-out FVU."""
    torch.set_num_threads(threads)
    rule, terms, optim = CASES[case]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(BATCH, D_IN, generator=generator) for _ in range(STEPS)]
    trained = Learner(
        SAE(D_IN, rule, site=Autoencoder(hook="x").bind({"x": D_IN})),
        terms,
        OptimConfig(**optim),
        total_steps=STEPS,
        dead_after=BATCH,
        refresh_steps=2,
    )
    trained.initialise({"x": batches[0]})
    for x in batches:
        trained.step({"x": x})
    fvu = HeldOutFVU(D_IN, torch.device("cpu"))
    fvu.update(*trained.predict({"x": batches[0]})[:2])
    state = {k: v for k, v in trained.state_dict().items() if isinstance(v, torch.Tensor)}
    for index, moments in trained.optimizer.state_dict()["state"].items():
        state |= {f"{index}.{k}": v for k, v in moments.items() if isinstance(v, torch.Tensor)}
    return {**state, "held out": torch.tensor(fvu.compute(), dtype=torch.float64)}


@pytest.mark.parametrize("case", CASES)
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

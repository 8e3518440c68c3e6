"""Infer codes for a known dictionary: 16 features in 8 dimensions, 3 active.

The data are the published ones: from seed 20240625, numpy's legacy generator draws each sample's
values |N(0, 1)| and then its support, and torch's generator draws the directions. 1,024 samples
train encoders, another 1,024 are scored. The penalty 0.01 of O'Neill et al., on means over
dimensions and latents, is 0.01 d / (2 F) = 0.0025 here. Encoders train as theirs did: full batch,
Adam at 1e-3, 20,000 steps, no biases, five starts, which are one batched product here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.science.target import Measurement, Target
from sae.inference import (
    InferenceResult,
    fista,
    gradient_pursuit,
    ista,
    log_codes,
    matching_pursuit,
    orthogonal_matching_pursuit,
    refine,
    support_then_refit,
)
from sae.metrics.code_matching import code_mcc_absolute

SEED, FEATURES, D_IN, ACTIVE, SAMPLES = 20240625, 16, 8, 3, 1024
PENALTY = 0.0025
STARTS, STEPS = 5, 20_000


def published_data() -> tuple[Tensor, Tensor, Tensor]:
    """Return x [2,048, 8], the true codes z [2,048, 16] and the dictionary [16, 8], float32."""
    numbers = np.random.RandomState(SEED)
    z = np.zeros((2 * SAMPLES, FEATURES))
    for row in z:
        values = np.abs(numbers.normal(size=FEATURES))
        support = numbers.choice(FEATURES, ACTIVE, replace=False)
        row[support] = values[support]
    directions = torch.randn(FEATURES, D_IN, generator=torch.Generator().manual_seed(SEED))
    truth, codes = normalize(directions, dim=1), torch.from_numpy(z).float()
    return codes @ truth, codes, truth


def encoders(x: Tensor, truth: Tensor, widths: list[int], steps: int = STEPS) -> Callable:
    """Train `STARTS` encoders on x with the dictionary fixed.

    Args:
        x: Training samples.
        truth: The dictionary.
        widths: Widths of the layers, each followed by a ReLU.
        steps: Number of training steps.

    Returns:
        The encoders, as a function from y [n, d_in] to codes [STARTS, n, features].
    """
    generator = torch.Generator().manual_seed(0)
    layers = [
        torch.empty(STARTS, fan_in, fan_out)
        .uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        .requires_grad_()
        for fan_in, fan_out in zip(widths, widths[1:], strict=False)
    ]

    def encode(y: Tensor) -> Tensor:
        for layer in layers:
            y = (y @ layer).relu()
        return y

    optimizer = torch.optim.Adam(layers, lr=1e-3, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        z = encode(x)
        # One mean for each start, so that the sum over starts does not mix their gradients.
        loss = ((z @ truth - x).square().mean((1, 2)) + 0.01 * z.mean((1, 2))).sum()
        loss.backward()
        optimizer.step()
    return torch.no_grad()(encode)


def inference_methods(x: Tensor, truth: Tensor) -> dict[str, Callable[[], InferenceResult]]:
    """Return the methods that need no training, by name; each takes at most 500 iterations."""
    k = ACTIVE
    one_shot = lambda: matching_pursuit(x, truth, k).codes
    return {
        "FISTA": lambda: fista(x, truth, PENALTY, iterations=500),
        "FISTA, negative codes allowed": lambda: fista(
            x, truth, PENALTY, iterations=500, non_negative=False
        ),
        "ISTA": lambda: ista(x, truth, PENALTY, iterations=500),
        "matching pursuit": lambda: matching_pursuit(x, truth, k),
        "gradient pursuit": lambda: gradient_pursuit(x, truth, k),
        "orthogonal matching pursuit": lambda: orthogonal_matching_pursuit(x, truth, k),
        "FISTA, 3 largest, refit": lambda: support_then_refit(x, truth, k, PENALTY, iterations=500),
        "matching pursuit, refined": lambda: refine(x, truth, one_shot(), 16),
    }


def run(steps: int = STEPS) -> Iterator[Measurement]:
    """Yield code MCC and CPU time of inference methods and encoders."""
    x, z, truth = published_data()
    test, true = x[SAMPLES:], z[SAMPLES:]
    bounds = {"FISTA": 0.985, "FISTA, 3 largest, refit": 0.985}
    for name, method in inference_methods(test, truth).items():
        method()  # warm up: first use loads code
        # On one thread of an idle machine, CPU time equals wall time.
        clock = time.process_time()
        result = method()
        seconds = time.process_time() - clock
        score = code_mcc_absolute(true, result.codes)
        yield Measurement(f"code MCC, {name}", (score,), low=bounds.get(name))
        high = 0.5 if name == "FISTA" else None
        yield Measurement(f"CPU seconds for 1,024 samples, {name}", (seconds,), high=high)
    log_result = log_codes(test, truth, PENALTY, iterations=steps)
    yield Measurement(
        "code MCC, log codes by Adam", (code_mcc_absolute(true, log_result.codes),), ".967"
    )
    for name, widths, published, ends in (
        ("linear encoder (SAE)", [D_IN, FEATURES], ".609", (0.569, 0.649)),
        ("MLP encoder, 32 hidden", [D_IN, 32, FEATURES], ".780", (None, None)),
    ):
        codes = encoders(x[:SAMPLES], truth, widths, steps)(test)
        scores = [code_mcc_absolute(true, start) for start in codes]
        yield Measurement(f"code MCC, {name}, each start", tuple(scores), published)
        mean = (sum(scores) / STARTS,)
        yield Measurement(f"code MCC, {name}, mean", mean, published, low=ends[0], high=ends[1])


TARGETS = [Target("known-dictionary", "O'Neill et al. 2411.13117, known dictionary", run)]

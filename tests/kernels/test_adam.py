from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_cases import (
    assert_as_accurate,
    device,
    each_backend,
    each_dtype,
    normal,
    slow_in_interpreter,
)
from sae_kernels.adam import adam_rows_

HYPER = {"lr": 3e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8}
LAYOUTS = {
    "bias": lambda seed: normal(777, seed=seed),
    "contiguous": lambda seed: normal(37, 63, seed=seed),
    "latent-major": lambda seed: normal(63, 37, seed=seed).t(),
    "one": lambda seed: normal(1, 1, seed=seed),
}


def run(make, backend: str, dtype: torch.dtype, unit_norm: bool, steps: int = 4) -> list[Tensor]:
    dev = device(backend)
    param = make(0).to(dev, dtype)
    if unit_norm:
        param /= param.norm(dim=1, keepdim=True)
    moments = [torch.zeros_like(param), torch.zeros_like(param)]
    for step in range(1, steps + 1):
        grad = make(step).to(dev, dtype)
        before, version = grad.clone(), param._version
        adam_rows_(param, grad, *moments, step=step, unit_norm=unit_norm, backend=backend, **HYPER)
        assert torch.equal(grad, before), "grad must be left as it is"
        assert param._version > version, "autograd must see that param changed"
    assert param.stride() == make(0).stride()
    return [param, *moments]


@each_backend
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_equal_the_reference(backend, dtype, layout):
    make = LAYOUTS[layout]
    results = run(make, backend, dtype, False)
    plain, truth = (
        run(make, "reference", dtype, False),
        run(make, "reference", torch.float64, False),
    )
    for name, *tensors in zip(
        ["param", "exp_avg", "exp_avg_sq"], results, plain, truth, strict=True
    ):
        assert_as_accurate(*tensors, name)


@each_backend
@each_dtype
@pytest.mark.parametrize(
    "shape",
    [(37, 63), (1, 5), slow_in_interpreter((50, 2)), slow_in_interpreter((3, 777))],
    ids=str,
)
def test_unit_norm_steps_equal_the_reference(backend, dtype, shape, monkeypatch):
    # several chunks, one ragged
    monkeypatch.setattr("sae_kernels.cpu.row_grads.CHUNK_ELEMENTS", 8 * shape[1])
    make = lambda seed: normal(*shape, seed=seed) + 0.25 * (seed == 0)
    results = run(make, backend, dtype, True)
    plain, truth = run(make, "reference", dtype, True), run(make, "reference", torch.float64, True)
    for name, *tensors in zip(
        ["param", "exp_avg", "exp_avg_sq"], results, plain, truth, strict=True
    ):
        assert_as_accurate(*tensors, name)
    norms = results[0].double().norm(dim=1)
    assert ((norms - 1).abs() <= 4 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_equals_torch_optim(backend):
    param = normal(37, 50, seed=0).requires_grad_()
    optimiser = torch.optim.Adam([param], lr=3e-2, betas=(0.9, 0.98), eps=1e-8)
    for step in range(1, 5):
        param.grad = normal(37, 50, seed=step)
        optimiser.step()
    ours = run(lambda seed: normal(37, 50, seed=seed), backend, torch.float64, False)[0]
    torch.testing.assert_close(ours, param.detach(), rtol=1e-12, atol=1e-14)


@each_backend
def test_unit_norm_ignores_the_part_of_the_gradient_along_the_row(backend):
    dev = device(backend)
    param = torch.nn.functional.normalize(normal(9, 12, seed=0), dim=1).to(dev)
    across = normal(9, 12, seed=1).to(dev)
    results = []
    for grad in (across, across + 5 * param):
        p, m, v = param.clone(), torch.zeros_like(param), torch.zeros_like(param)
        adam_rows_(p, grad, m, v, step=1, unit_norm=True, backend=backend, **HYPER)
        results.append((p, m, v))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@each_backend
def test_a_row_of_zeros_stays_zero(backend):
    param = torch.zeros(2, 5, device=device(backend))
    param[1, 0] = 1
    state = [torch.zeros_like(param), torch.zeros_like(param)]
    adam_rows_(
        param, torch.zeros_like(param), *state, step=1, unit_norm=True, backend=backend, **HYPER
    )
    assert param.tolist() == [[0.0] * 5, [1.0, 0, 0, 0, 0]]


def test_gradient_in_another_layout_gives_the_same_update():
    param = normal(37, 63, seed=0)
    want, got = param.clone(), param.clone()
    for target, grad in (
        (want, normal(37, 63, seed=1)),
        (got, normal(37, 63, seed=1).t().contiguous().t()),
    ):
        adam_rows_(target, grad, torch.zeros_like(param), torch.zeros_like(param), step=1, **HYPER)
    assert torch.equal(want, got)


@pytest.mark.parametrize(
    ("param", "moment", "unit_norm", "message"),
    [
        (torch.zeros(4, 6).t(), torch.zeros(4, 6).t(), True, "contiguous"),
        (torch.zeros(4, 6), torch.zeros(6, 4).t(), False, "layout"),
        (torch.zeros(4, 6)[:, ::2], torch.zeros(4, 6)[:, ::2], False, "transpose"),
    ],
    ids=["unit-norm-of-columns", "moments", "strided"],
)
def test_unsupported_layouts_are_refused(param, moment, unit_norm, message):
    with pytest.raises(ValueError, match=message):
        adam_rows_(param, param, moment, moment, step=1, unit_norm=unit_norm, **HYPER)

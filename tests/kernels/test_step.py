from __future__ import annotations

import torch

from kernel_cases import device, each_backend, mark_slow_in_interpreter, normal
from sae_kernels.adam import adam_rows_
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk


def train(backend: str, dev: str) -> list[torch.Tensor]:
    W_dec = torch.nn.functional.normalize(normal(60, 12, seed=1), dim=1).to(dev)
    params = [W_dec.clone().t(), torch.zeros(60).to(W_dec), W_dec, torch.zeros(12).to(W_dec)]
    params = [p.requires_grad_() for p in params]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    for step in (1, 2, 3):
        x = normal(10, 12, seed=10 + step).to(dev)
        W_enc, b_enc, W_dec, b_dec = params
        codes = encode_topk(x, W_enc, b_enc, 4, b_dec, backend=backend)
        (decode(codes, W_dec, b_dec, backend=backend) - x).square().sum(1).mean().backward()
        for param, state in zip(params, moments, strict=True):
            adam_rows_(
                param,
                param.grad,
                *state,
                step=step,
                lr=1e-2,
                beta1=0.9,
                beta2=0.99,
                eps=1e-8,
                unit_norm=param is W_dec,
                backend=backend,
            )
            param.grad = None
    return [p.detach().cpu() for p in params]


@each_backend
@mark_slow_in_interpreter
def test_three_steps_of_training_equal_the_dense_ones(backend):
    want = train("reference", "cpu")
    for got, expected in zip(train(backend, device(backend)), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)

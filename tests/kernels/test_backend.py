from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sae_kernels.adam import adam_rows_
from sae_kernels.backend import resolve
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk


def test_auto_is_torch_on_cpu():
    assert resolve("auto", torch.zeros(1)) == "torch"


def test_unknown_backend_error_lists_the_valid_ones():
    x, W = torch.zeros(2, 3), torch.zeros(4, 3)
    message = "backend='cuda' is unknown; use one of auto, torch, triton, reference"
    with pytest.raises(ValueError, match=message):
        encode_topk(x, W.t(), torch.zeros(4), 1, backend="cuda")
    codes = encode_topk(x, W.t(), torch.zeros(4), 1)
    with pytest.raises(ValueError, match=message):
        decode(codes, W, torch.zeros(3), backend="cuda")
    with pytest.raises(ValueError, match=message):
        adam_rows_(W, W, W, W, step=1, lr=1, beta1=0, beta2=0, eps=1, backend="cuda")


def test_triton_on_a_cpu_tensor_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA tensor, got one on cpu"):
        resolve("triton", torch.zeros(1))


def test_cpu_works_where_triton_is_not_installed():
    """No module of the CPU path imports triton, sae or lightning."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from sae_kernels.adam import adam_rows_
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk
W = torch.randn(30, 5, requires_grad=True)
codes = encode_topk(torch.randn(7, 5), W.t(), torch.zeros(30), 3)
decode(codes, W, torch.zeros(5)).sum().backward()
adam_rows_(W.detach(), W.grad, torch.zeros(30, 5), torch.zeros(30, 5), step=1, lr=1e-3, beta1=0.9,
           beta2=0.99, eps=1e-8, unit_norm=True)
loaded = [m for m in sys.modules if m.split(".")[0] in ("sae", "lightning")]
assert not loaded, loaded
try:
    decode(codes, W, torch.zeros(5), backend="triton")
except ValueError as error:
    assert "needs the triton package" in str(error)
else:
    raise AssertionError("triton ran without triton")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr

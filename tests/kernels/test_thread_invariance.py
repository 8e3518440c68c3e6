"""MKL's mode by processor, and products on one thread against several."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sae_kernels.thread_invariance import strict_mkl_mode

XEON = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx avx2 {}\nbugs\t\t: spectre_v1\n"


@pytest.mark.parametrize(
    ("cpuinfo", "mode"),
    [
        (XEON.format("avx512f"), "AVX512,STRICT"),
        (XEON.format(""), "AVX2,STRICT"),
        (XEON.replace("avx2", ""), None),
        (XEON.format("avx512f").replace("GenuineIntel", "AuthenticAMD"), None),
        ("", None),
    ],
)
def test_mkl_mode_follows_the_processor(cpuinfo, mode):
    assert strict_mkl_mode(cpuinfo) == mode


@pytest.mark.parametrize("shape", [(512, 4096, 384), (1, 512, 384), (16, 4096, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_do_not_depend_on_the_number_of_threads(shape, dtype):
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, dtype=dtype, generator=generator)
    right = torch.randn(inner, columns, dtype=dtype, generator=generator)
    products = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        products.append((left @ right, left[0] @ right))
    for product, row in products[1:]:
        assert torch.equal(product, products[0][0]) and torch.equal(row, products[0][1])


def test_a_mode_that_the_user_set_is_kept():
    code = "import sae_kernels, os; print(os.environ['MKL_CBWR'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MKL_CBWR": "COMPATIBLE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "COMPATIBLE"

"""`gpu.spmm`: rows go in blocks of 512 elements, so one case covers the three real widths."""

from __future__ import annotations

from ahead import CHIPS, Case
from ahead.row_grads import constants, pair_part
from sae_kernels.gpu import spmm as gpu_spmm

LISTS = {f"{name}_ptr": "*i64" for name in ("rows", "tokens", "slots", "starts", "indices")}
FLOATS = ("out_ptr", "table_ptr", "weights_ptr", "left_ptr")
SIZES = {"width": "i32:16", "d_sae": "i32:16"}


def case(kernel, dtype: str, chips: tuple[int, ...], **fixed) -> Case:
    fixed = constants(dtype) | fixed
    types = LISTS | SIZES | dict.fromkeys(FLOATS, f"*{dtype}") | {"part": pair_part(dtype)}
    if kernel is gpu_spmm._sum_weights_kernel:
        types["out_ptr"] = "*fp64" if dtype == "fp64" else "*fp32"
        fixed["BLOCK_P"] = gpu_spmm._BLOCK_WEIGHTS
    return Case(
        kernel=kernel,
        types={n: t for n, t in types.items() if n in kernel.arg_names and n not in fixed},
        constants={name: value for name, value in fixed.items() if name in kernel.arg_names},
        chips=chips,
    )


KERNELS = [
    gpu_spmm._sum_rows_kernel,
    gpu_spmm._sum_tokens_kernel,
    gpu_spmm._sum_weights_kernel,
    gpu_spmm._dot_rows_kernel,
]

CASES = [
    *(case(kernel, "bf16", CHIPS) for kernel in KERNELS),
    *(case(kernel, dtype, (90,)) for dtype in ("fp32", "fp64") for kernel in KERNELS),
    case(gpu_spmm._sum_rows_kernel, "fp32", (90,), BLOCK_D=1, width=1),
    case(gpu_spmm._sum_tokens_kernel, "fp32", (90,), BLOCK_D=1, width=1),
    case(gpu_spmm._dot_rows_kernel, "fp32", (90,), BLOCK_D=1, width=1, d_sae=1),
]

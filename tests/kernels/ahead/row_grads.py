"""`gpu.row_grads`: rows go in blocks of 512 elements, so one case covers the three real widths."""

from __future__ import annotations

import triton.language as tl

from ahead import CHIPS, Case
from sae_kernels.gpu import row_grads as gpu_row_grads

WIDE = {"bf16": "fp32", "fp32": "fp32", "fp64": "fp64"}
BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}


def pair_part(dtype: str) -> tuple[str, ...]:
    """table, tokens, slots, weights, starts, and the sums over pieces."""
    return f"*{dtype}", "*i64", "*i64", f"*{dtype}", "*i64", f"*{WIDE[dtype]}"


def row_part(dtype: str) -> tuple[str, str]:
    return "*i32", f"*{dtype}"


def constants(dtype: str, block: int = 512, num_warps: int = 4) -> dict[str, object]:
    return {
        "ACC": tl.float64 if dtype == "fp64" else tl.float32,
        "PIECE": gpu_row_grads.PIECE,
        "BLOCK_P": gpu_row_grads.block_pairs(block, BYTES[dtype], num_warps),
        "BLOCK_D": block,
    }


def sum_pieces(dtype: str, chips: tuple[int, ...]) -> Case:
    table, tokens, slots, weights, starts, partials = pair_part(dtype)
    return Case(
        kernel=gpu_row_grads._sum_pieces_kernel,
        types={
            "partials_ptr": partials,
            "table_ptr": table,
            "tokens_ptr": tokens,
            "slots_ptr": slots,
            "weights_ptr": weights,
            "starts_ptr": starts,
            "indices_ptr": "*i64",
            "width": "i32:16",
        },
        constants=constants(dtype),
        chips=chips,
    )


def square_norm(dtype: str, chips: tuple[int, ...], pair_parts: int, row_parts: int) -> Case:
    return Case(
        kernel=gpu_row_grads._square_norm_kernel,
        types={
            "out_ptr": f"*{WIDE[dtype]}",
            "dense_ptr": f"*{dtype}",
            "pair_parts": (pair_part(dtype),) * pair_parts,
            "row_parts": (row_part(dtype),) * row_parts,
            "width": "i32:16",
        },
        constants=constants(dtype),
        chips=chips,
    )


CASES = [
    sum_pieces("bf16", CHIPS),
    sum_pieces("fp32", (90,)),
    sum_pieces("fp64", (90,)),
    square_norm("bf16", CHIPS, 1, 0),
    square_norm("fp32", (90,), 2, 1),
    square_norm("fp64", (90,), 1, 1),
]

"""`gpu.encode_topk`: sizes are arguments, so each case stands for all real shapes."""

from __future__ import annotations

import triton.language as tl

from ahead import CHIPS, Case
from sae_kernels.gpu import encode_topk as gpu_encode_topk

KEYS = {
    "i16": {"INF": 0x7F80, "TOP": 2**15 - 1, "KEY": tl.int32},
    "i32": {"INF": 0x7F800000, "TOP": 2**31 - 1, "KEY": tl.int32},
    "i64": {"INF": 0x7FF << 52, "TOP": 2**63 - 1, "KEY": tl.int64},
}
DIGITS = {"i16": 2, "i32": 4, "i64": 8}


def group_max(bits: str, chips=(90,)) -> Case:
    return Case(
        kernel=gpu_encode_topk._group_max_kernel,
        types={"pre_ptr": f"*{bits}", "maxima_ptr": f"*{bits}", "d_sae": "i32:16"},
        constants={**KEYS[bits], "GROUP": 32, "BLOCK": 128},
        chips=chips,
    )


def select(bits: str, types: dict[str, str], *, chips=(90,), **constants) -> Case:
    return Case(
        kernel=gpu_encode_topk._select_kernel,
        types={"bits_ptr": f"*{bits}", **types},
        constants={**KEYS[bits], "DIGITS": DIGITS[bits], "GROUP": 32, "BLOCK": 1024, **constants},
        chips=chips,
    )


SIZES = {"width": "i32:16", "k": "i32:16"}


def groups(bits: str, chips=(90,)) -> Case:
    """The groups of a row from its maxima."""
    types = {"indices_ptr": "*i32", **SIZES}
    return select(bits, types, chips=chips, groups_ptr=None, values_ptr=None)


def members(bits: str, chips=(90,)) -> Case:
    """The elements of the groups."""
    types = {"groups_ptr": "*i32", "values_ptr": f"*{bits}", "indices_ptr": "*i64", **SIZES}
    return select(bits, types, chips=chips)


def row(bits: str, chips=(90,), **constants) -> Case:
    """The elements of a row without groups."""
    types = {"values_ptr": f"*{bits}", "indices_ptr": "*i64"}
    types |= {name: "i32" for name in SIZES if name not in constants}
    return select(bits, types, chips=chips, groups_ptr=None, **constants)


CASES = [
    *(make("i16", CHIPS) for make in (group_max, groups, members)),
    *(make(bits, CHIPS) for bits in ("i32", "i64") for make in (group_max, groups, members)),
    *(row(bits, chips=CHIPS) for bits in KEYS),
    row("i32", BLOCK=1, width=1, k=1),
]

"""`gpu.encode_batch_topk`: sizes are arguments, so each case stands for all real shapes."""

from __future__ import annotations

from dataclasses import replace

import triton.language as tl

from ahead import CHIPS, Case
from sae_kernels.gpu import encode_batch_topk as gpu_encode_batch_topk

BLOCK = 1024
INF = {"i16": 0x7F80, "i32": 0x7F800000, "i64": 0x7FF << 52}
DIGITS = {"i16": 2, "i32": 4, "i64": 8}


def key(bits: str) -> tl.dtype:
    return tl.int64 if bits == "i64" else tl.int32


def selection(bits: str, chips: tuple[int, ...], members: bool) -> list[Case]:
    """Return the cases of a selection from group maxima, or from kept keys and group members."""
    types = {"keys_ptr": f"*{bits}", "size": "i32:16", "n": "i32:16", "histograms_ptr": "*i32"}
    constants = {"KEY": key(bits), "DIGITS": DIGITS[bits], "GROUP": 32, "BLOCK": BLOCK}
    out = {"state_ptr": "*i64", "ranks_ptr": "*i64", "first_row": "i32:16", "d_sae": "i32:16"}
    unused = {}
    if members:
        types["groups_state_ptr"], constants["floor_ptr"] = "*i64", None
        out |= {"positions_ptr": "*i64", "out_keys_ptr": f"*{bits}"}
        out |= {"groups_ptr": "*i32", "kept_positions_ptr": "*i64"}
    else:
        types["floor_ptr"], constants["groups_state_ptr"] = "*i64", None
        out["positions_ptr"] = "*i32"
        unused = {"groups_ptr": None, "kept_positions_ptr": None, "out_keys_ptr": None}
    return [
        Case(
            kernel=gpu_encode_batch_topk._histogram_kernel,
            types=types,
            constants={**constants, "DONE": DIGITS[bits] - 1, "BLOCKS": 16},
            chips=chips,
        ),
        Case(
            kernel=gpu_encode_batch_topk._rank_kernel,
            types={**types, "ranks_ptr": "*i32"},
            constants=constants,
            chips=chips,
        ),
        Case(
            kernel=gpu_encode_batch_topk._compact_kernel,
            types={**types, **out},
            constants={**constants, **unused},
            chips=chips,
        ),
    ]


def gather(bits: str, chips: tuple[int, ...]) -> Case:
    return Case(
        kernel=gpu_encode_batch_topk._members_kernel,
        types={
            "keys_ptr": f"*{bits}",
            "bits_ptr": f"*{bits}",
            "groups_ptr": "*i32",
            "groups_state_ptr": "*i64",
            "d_sae": "i32:16",
        },
        constants={
            "INF": INF[bits],
            "TOP": (1 << (8 * DIGITS[bits] - 1)) - 1,
            "KEY": key(bits),
            "GROUP": 32,
            "BLOCK": 128,
        },
        chips=chips,
    )


def ones(case: Case) -> Case:
    """With sizes of 1, which Triton makes constants, and which type differently."""
    sizes = {name: 1 for name, type in case.types.items() if type.startswith("i32")}
    types = {name: type for name, type in case.types.items() if name not in sizes}
    return replace(case, types=types, constants={**case.constants, **sizes})


def kernels(bits: str, chips: tuple[int, ...] = (90,)) -> list[Case]:
    return [
        *selection(bits, chips, members=True),
        *selection(bits, chips, members=False),
        gather(bits, chips),
    ]


CASES = [*kernels("i16", CHIPS), *kernels("i32"), *kernels("i64"), *map(ones, kernels("i32"))]

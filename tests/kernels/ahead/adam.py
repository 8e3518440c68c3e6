"""`gpu.adam`: a program has a complete row of d_in elements with unit_norm, else a block of it.

Complete rows take blocks of 1024 for d_in = 768 and 4096 for 2304 and 4096. Other blocks have 512
columns if the gradient has parts, and 1024 if a tensor is treated as one long row.
"""

from __future__ import annotations

import triton.language as tl

from ahead import CHIPS, Case
from ahead.row_grads import constants, pair_part, row_part
from sae_kernels.gpu import adam as gpu_adam

SCALARS = ("rate", "root_scale", "beta1", "beta2", "eps", "step")
OPTIONAL = ("master_ptr", "dense_ptr", "scale_ptr", "hyper_ptr")


def case(
    dtype: str,
    block: int,
    *,
    num_warps: int = 4,
    chips: tuple[int, ...] = (90,),
    parts: int = 0,
    moments: str = "",
    table: str = "",
    pointers: dict[str, str] | None = None,
    width: int | None = None,
    unit_norm: bool = True,
    lazy: bool = False,
) -> Case:
    """Return a case with `parts` pair parts and one row part fewer.

    `pointers` are the optional pointers; by default only the dense gradient.
    """
    moments, table = moments or dtype, table or dtype
    pointers = {"dense_ptr": f"*{dtype}"} if pointers is None else pointers
    types = {
        "param_ptr": f"*{dtype}",
        "exp_avg_ptr": f"*{moments}",
        "exp_avg_sq_ptr": f"*{moments}",
        "pair_parts": (pair_part(table),) * parts,
        "row_parts": (row_part(table),) * (parts - 1),
        "count": "i32:16",
        "width": "i32:16",
        "seed": "i64",
        **dict.fromkeys(SCALARS, "fp64"),
        **pointers,
    }
    fixed = {
        "UNIT_NORM": unit_norm,
        "LAZY": lazy,
        "STOCHASTIC": moments == "bf16" and (dtype != "bf16" or "master_ptr" in pointers),
        **dict.fromkeys(set(OPTIONAL) - set(pointers), None),
        **constants(table, block, num_warps),
    }
    fixed["ACC"] = tl.float64 if dtype == "fp64" else tl.float32
    if width is not None:
        fixed["width"] = width
        del types["width"]
    return Case(
        kernel=gpu_adam._adam_kernel,
        types=types,
        constants=fixed,
        num_warps=num_warps,
        chips=chips,
    )


CLIP = {"scale_ptr": "*fp32"}
GRAPH = {"hyper_ptr": "*fp64", **CLIP}
MASTER = {"master_ptr": "*fp32", **CLIP}
CASES = [
    case("fp32", 1024, unit_norm=False, chips=CHIPS),
    case("fp32", 1024, parts=1, pointers=CLIP, chips=CHIPS),
    case("fp32", 4096, num_warps=8, parts=1, pointers=CLIP, chips=CHIPS),
    case("bf16", 4096, num_warps=8, parts=1, pointers=MASTER, moments="bf16", chips=CHIPS),
    case("bf16", 1024, parts=1, pointers=MASTER, moments="bf16"),
    case("bf16", 512, parts=1, pointers=MASTER, moments="bf16", unit_norm=False, chips=CHIPS),
    case("fp32", 512, parts=2, pointers=GRAPH, lazy=True, unit_norm=False),
    case("fp32", 4096, num_warps=8, parts=2, pointers=GRAPH, moments="bf16"),
    case("bf16", 4096, num_warps=8),
    case("fp32", 8192, num_warps=16, parts=1, pointers=CLIP),
    case("fp64", 1024, parts=1, pointers={}),
    case("fp32", 1, width=1),
]

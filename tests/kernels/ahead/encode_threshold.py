"""`gpu.encode_threshold`: sizes are arguments, so each case stands for all real shapes."""

from __future__ import annotations

from ahead import CHIPS, Case
from sae_kernels.gpu import encode_threshold as gpu_encode_threshold

WIDE = {"bf16": "fp32", "fp32": "fp32", "fp64": "fp64"}


def cases(dtype: str, per_latent: bool, chips: tuple[int, ...] = (90,)) -> list[Case]:
    types = {"pre_ptr": f"*{dtype}", "floor_ptr": f"*{WIDE[dtype]}", "d_sae": "i32:16"}
    out = {"indices_ptr": "*i64", "values_ptr": f"*{dtype}", "starts_ptr": "*i64"}
    constants = {"PER_LATENT": per_latent, "BLOCK": 1024}
    return [
        Case(
            kernel=gpu_encode_threshold._count_kernel,
            types={"counts_ptr": "*i64", **types},
            constants=constants,
            chips=chips,
        ),
        Case(
            kernel=gpu_encode_threshold._write_kernel,
            types={**out, **types, "capacity": "i32:16"},
            constants=constants,
            chips=chips,
        ),
    ]


ONES = Case(
    kernel=gpu_encode_threshold._write_kernel,
    types={
        "indices_ptr": "*i64",
        "values_ptr": "*fp32",
        "starts_ptr": "*i64",
        "pre_ptr": "*fp32",
        "floor_ptr": "*fp32",
    },
    constants={"PER_LATENT": True, "BLOCK": 1, "d_sae": 1, "capacity": 1},
    chips=(90,),
)

CASES = [
    *cases("bf16", True, CHIPS),
    *cases("bf16", False, CHIPS),
    *cases("fp32", True),
    *cases("fp64", True),
    ONES,
]

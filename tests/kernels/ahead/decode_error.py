from __future__ import annotations

import triton.language as tl

from ahead import Case
from sae_kernels.gpu import decode_error as gpu_decode_error

POINTERS = ("residual_ptr", "table_ptr", "bias_ptr", "target_ptr", "weights_ptr")


def case(dtype: str, chips: tuple[int, ...], block: int = 512, **constants: object) -> Case:
    wide = "fp64" if dtype == "fp64" else "fp32"
    acc = tl.float64 if dtype == "fp64" else tl.float32
    indices = {"latents_ptr": "*i64", "starts_ptr": "*i64"}
    width = {} if "width" in constants else {"width": "i32:16"}
    return Case(
        kernel=gpu_decode_error._error_kernel,
        types={**dict.fromkeys(POINTERS, f"*{dtype}"), "squares_ptr": f"*{wide}", **indices}
        | width,
        constants={"ACC": acc, "BLOCK_P": 8, "BLOCK_D": block, **constants},
        chips=chips,
    )


CASES = [
    case("bf16", (80, 90, 100)),
    case("fp32", (90,)),
    case("fp64", (90,)),
    case("fp32", (90,), block=1, width=1),
]

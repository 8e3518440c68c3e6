from __future__ import annotations

import triton.language as tl

from ahead import Case
from sae_kernels.gpu import decode_prefixes as gpu_decode_prefixes

POINTERS = ("table_ptr", "bias_ptr", "target_ptr", "weights_ptr")
SIZES = {"n_levels": "i32", "width": "i32:16", "stride": "i32:16"}
ONES = {"n_levels": 1, "width": 1, "stride": 1, "BLOCK_D": 1}


def cases(dtype: str, chips: tuple[int, ...], slots: int, **constants: object) -> list[Case]:
    """slots: at once; 1 where every slot has a level of its own."""
    wide = "fp64" if dtype == "fp64" else "fp32"
    types = {**dict.fromkeys(POINTERS, f"*{dtype}"), "latents_ptr": "*i64", "starts_ptr": "*i64"}
    types |= {name: kind for name, kind in SIZES.items() if name not in constants}
    constants = {
        "ACC": tl.float64 if dtype == "fp64" else tl.float32,
        "BLOCK_P": slots,
        "BLOCK_D": 512,
        **constants,
    }
    more = {"grads_ptr": f"*{dtype}", "dots_ptr": f"*{wide}", "scale_ptr": f"*{wide}"}
    how = {"chips": chips, "num_warps": max(slots // 2, 1)}
    return [
        Case(
            kernel=gpu_decode_prefixes._prefix_squares_kernel,
            types={**types, "squares_ptr": f"*{wide}"},
            constants=constants,
            **how,
        ),
        Case(
            kernel=gpu_decode_prefixes._prefix_gradients_kernel,
            types={**types, **more, "n_slots": "i32:16"},
            constants={**constants, "BLOCK_R": max(slots, 4)},
            **how,
        ),
    ]


CASES = [
    *cases("bf16", (80, 90, 100), 1),
    *cases("bf16", (90,), 2),
    *cases("bf16", (90,), 8),
    *cases("fp32", (90,), 1),
    *cases("fp64", (90,), 1),
    *cases("fp64", (90,), 8),
    *cases("fp32", (90,), 1, **ONES),
]

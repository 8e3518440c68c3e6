"""`gpu.encoder_matmul`: every configuration that it is tuned over."""

from __future__ import annotations

from ahead import Case
from sae_kernels.gpu import encoder_matmul as gpu_encoder_matmul


def case(config, dtype: str, *chips: int) -> Case:
    b, f, d = (config.kwargs[f"BLOCK_{name}"] for name in "BFD")
    tma = 80 not in chips
    tile = lambda *shape: "tensordesc<{}[{},{}]>".format(dtype, *shape) if tma else f"*{dtype}"
    return Case(
        kernel=gpu_encoder_matmul._encode_kernel,
        types={
            "x": tile(b, d),
            "W": tile(f, d),
            "acts": tile(b, f),
            "bias_ptr": f"*{dtype}",
            "maxima_ptr": f"*{dtype}",
            "batch": "i32:16",
            "d_in": "i32:16",
            "d_sae": "i32:16",
        },
        constants={"GROUP": 32, "TMA": tma, "UPCAST": False, **config.kwargs},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        chips=chips,
        tensor_cores=True,
    )


CASES = [
    *(case(config, "bf16", 90, 100) for config in gpu_encoder_matmul.CONFIGS),
    # On sm_80 the first two spill 8 and 16 bytes.
    case(gpu_encoder_matmul.CONFIGS[2], "bf16", 80),
    case(gpu_encoder_matmul.CONFIGS[2], "fp16", 90),
]

"""acts = relu(centred @ W_rows.T + b_enc) and the maximum of each 32 columns, in one kernel.

centred [batch, d_in], W_rows [d_sae, d_in], b_enc [d_sae], bf16 or fp16; acts [batch, d_sae] and
maxima [batch, d_sae / 32] in the same dtype. Sums, bias, relu and maxima are fp32, rounded last.
Rounding keeps the order, so a rounded maximum is the maximum of the rounded values. NaN stays NaN.
Nothing is saved for backward.

The vendor's product needs another pass over the activations for the maxima. Here they cost 32
shuffles a thread after each tile of 128 x 256: 6 % of the product at d_in = 768 and 1 % at 4096, if
nothing overlaps (instructions counted in the code for sm_90, not measured).
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def _config(block_b: int, block_f: int, num_warps: int, num_stages: int) -> triton.Config:
    # All have one BLOCK_D, which fixes the order of each sum, so tuning cannot change the bits.
    blocks = {"BLOCK_B": block_b, "BLOCK_F": block_f, "BLOCK_D": 64}
    return triton.Config(
        blocks, num_warps=num_warps, num_stages=num_stages, pre_hook=_set_block_shapes
    )


def _set_block_shapes(arguments: dict) -> None:
    """Give the tensor descriptors the block shapes of a configuration, before a launch."""
    if arguments["TMA"]:
        b, f, d = (arguments[name] for name in ("BLOCK_B", "BLOCK_F", "BLOCK_D"))
        arguments["x"].block_shape = [b, d]
        arguments["W"].block_shape = [f, d]
        arguments["acts"].block_shape = [b, f]


CONFIGS = [
    _config(128, 256, num_warps=8, num_stages=4),
    _config(128, 128, num_warps=4, num_stages=3),  # two per SM: one stores while one multiplies
    _config(128, 128, num_warps=8, num_stages=4),
]


# The interpreter cannot measure time, so it gets only the first.
@triton.autotune(CONFIGS[:1] if triton.knobs.runtime.interpret else CONFIGS, key=["d_in", "d_sae"])
@triton.jit
def _encode_kernel(
    x,
    W,
    acts,
    bias_ptr,
    maxima_ptr,
    batch,
    d_in,
    d_sae,
    GROUP: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute one tile of acts and its maxima. x, W and acts are pointers without TMA.

    Neighbouring programs share their columns, so that W is read from memory once. With TMA, x, W
    and acts are tensor descriptors.
    """
    if not TMA:
        x = tl.make_tensor_descriptor(x, [batch, d_in], [d_in, 1], [BLOCK_B, BLOCK_D])
        W = tl.make_tensor_descriptor(W, [d_sae, d_in], [d_in, 1], [BLOCK_F, BLOCK_D])
        acts = tl.make_tensor_descriptor(acts, [batch, d_sae], [d_sae, 1], [BLOCK_B, BLOCK_F])
    o_b = tl.program_id(0) * BLOCK_B
    o_f = tl.program_id(1) * BLOCK_F
    b_acc = tl.zeros((BLOCK_B, BLOCK_F), tl.float32)
    for d in range(0, d_in, BLOCK_D):
        b_x = x.load([o_b, d])
        b_W = W.load([o_f, d])
        if UPCAST:  # the interpreter multiplies the bit patterns of bf16
            b_x, b_W = b_x.to(tl.float32), b_W.to(tl.float32)
        b_acc = tl.dot(b_x, b_W.T, b_acc)
    o_c = o_f + tl.arange(0, BLOCK_F)
    b_bias = tl.load(bias_ptr + o_c, mask=o_c < d_sae, other=0.0).to(tl.float32)
    b_acts = tl.maximum(b_acc + b_bias[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)
    dtype: tl.constexpr = maxima_ptr.dtype.element_ty
    acts.store([o_b, o_f], b_acts.to(dtype))
    # As unsigned integers, relu'd floats keep their order, and NaN of either sign is above them.
    b_bits = tl.reshape(b_acts.to(tl.uint32, bitcast=True), (BLOCK_B, BLOCK_F // GROUP, GROUP))
    b_max = tl.max(b_bits, axis=2).to(tl.float32, bitcast=True).to(dtype)
    n_groups = d_sae // GROUP
    o_r = o_b + tl.arange(0, BLOCK_B)
    o_g = o_f // GROUP + tl.arange(0, BLOCK_F // GROUP)
    o_out = o_r.to(tl.int64)[:, None] * n_groups + o_g[None, :]
    tl.store(maxima_ptr + o_out, b_max, mask=(o_r < batch)[:, None] & (o_g < n_groups)[None, :])


def fits(centred: Tensor, W_rows: Tensor, group: int) -> bool:
    """Return whether `encode` can take these inputs.

    It needs contiguous rows of 16-bit floats, aligned to 16 bytes, and d_sae a multiple of `group`.
    """
    return (
        centred.dtype.itemsize == 2
        and centred.shape[1] % 8 == 0
        and W_rows.shape[0] % group == 0
        and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (centred, W_rows))
    )


def encode(
    centred: Tensor,
    W_rows: Tensor,
    b_enc: Tensor,
    acts: Tensor,
    maxima: Tensor,
    group: int,
    *,
    tma: bool | None = None,
) -> None:
    """Write acts [batch, d_sae] and maxima [batch, d_sae / group].

    The first call for a (d_in, d_sae) times the configurations, which waits for the device. Make
    one before capturing a CUDA graph.

    Args:
        centred, W_rows, b_enc, acts, maxima: See the module's docstring.
        group: The columns that share a maximum.
        tma: Whether the tensor memory accelerator copies the tiles; None to use it if there is one.
    """
    batch, d_in = centred.shape
    d_sae = W_rows.shape[0]
    if tma is None:
        tma = centred.is_cuda and torch.cuda.get_device_capability(centred.device) >= (9, 0)
    tiles = [centred, W_rows, acts]
    if tma:  # each configuration sets its own block shape
        tiles = [TensorDescriptor.from_tensor(tensor, [1, 1]) for tensor in tiles]
    grid = lambda meta: (
        triton.cdiv(batch, meta["BLOCK_B"]),
        triton.cdiv(d_sae, meta["BLOCK_F"]),
    )
    _encode_kernel[grid](
        x=tiles[0],
        W=tiles[1],
        acts=tiles[2],
        bias_ptr=b_enc,
        maxima_ptr=maxima,
        batch=batch,
        d_in=d_in,
        d_sae=d_sae,
        GROUP=group,
        TMA=tma,
        UPCAST=not centred.is_cuda,
    )

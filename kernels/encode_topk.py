"""values, indices = relu of the k largest of pre = (x - b_dec) @ W_enc + b_enc, per row.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype. Selection is exact: the latents with a positive value are those of a
stable descending sort of the row, so a tie at the k-th place goes to the lowest index. 16-bit
inputs are summed in fp32. The CPU selects from these sums and rounds last; the GPU rounds them
first, as autocast would, and selects from the rounded values. Pre-activations exist only for a
bounded chunk of rows.

Backward: `encoder_backward`, with g = dL/dvalues where the value is positive, else 0. Saved for
backward: x - b_dec, W_enc, values and the pairs.

Non-finite values: NaN counts as the largest value, as in torch.topk, and comes out as NaN with
gradient 0; +inf is an ordinary value; -inf is never positive.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from sae_kernels import reference
from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import SelectedPreActs, register_encoder_backward
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import row_grads_of


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Codes:
    """Return relu of the k largest of (x - b_dec) @ W_enc + b_enc in each row, as codes.

    Source: TopK, Gao et al. 2024, section 2.3.

    Args:
        x: Activations, shape [batch, d_in].
        W_enc: Encoder weights, shape [d_in, d_sae]; fast if W_enc.t() is contiguous.
        b_enc: Encoder bias, shape [d_sae].
        k: The number of slots per row, 1..d_sae.
        b_dec: Subtracted from x, shape [d_in], or None.
        backend: As in `decode`.

    Returns:
        Codes with values [batch, k] >= 0, differentiable once in x, W_enc, b_enc and b_dec, and
        distinct indices within a row. The gradient of W_enc is latent-major too. A row with fewer
        than k positive pre-activations has empty slots, which get no gradient. The order of a row's
        slots is fixed for given inputs and backend, and otherwise unspecified. autocast has no
        effect: the common dtype of the inputs decides.

    Raises:
        ValueError: k is not in 1..d_sae, or the backend is unknown.
    """
    d_sae = W_enc.shape[1]
    if not 1 <= k <= d_sae:
        raise ValueError(f"k={k} must lie between 1 and d_sae={d_sae}")
    if torch.compiler.is_compiling() and backend != "reference":
        values, indices = encode_topk_op(x, W_enc, b_enc, b_dec, k, backend)
        return Codes(values, indices, d_sae)
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_topk(x, W_enc, b_enc, k, b_dec)
    if backend == "triton":
        from sae_kernels.gpu.encode_topk import forward
    else:
        from sae_kernels.cpu.encode_topk import forward
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centred = x if b_dec is None else x - b_dec
        values, indices = forward(centred, W_enc.t().contiguous(), b_enc, k)
    pairs = Pairs(indices, None, d_sae)
    codes = Codes(values, indices, d_sae, _pairs=pairs)
    sums, row_grads = pair_sums(backend), row_grads_of(W_enc)
    values = SelectedPreActs.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, row_grads)
    return Codes(values, indices, d_sae, _pairs=pairs)


@custom_op("sae_kernels::encode_topk", mutates_args=())
def encode_topk_op(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, k: int, backend: str
) -> tuple[Tensor, Tensor]:
    codes = encode_topk(x, W_enc, b_enc, k, b_dec, backend=backend)
    return codes.values, codes.indices


@encode_topk_op.register_fake
def _(x, W_enc, b_enc, b_dec, k, backend):
    # len() would turn a symbolic size into a number.
    shape = x.shape[0], k
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


register_encoder_backward(encode_topk_op)

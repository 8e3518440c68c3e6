"""What the ops in `encode_ops` and `decode_ops` share.

Each public function calls its op while torch.compile or torch.export trace it, and is called by it
when the graph runs. In eager mode it goes straight to its autograd.Function: asking is_compiling()
costs 0.06 us, dispatching through the op 30 us more on a call of 20, 56 where a gradient is wanted.

Ops are functional, tensors in and out: codes travel as values, indices and offsets, so that each
backward pass orders them by latent anew. Weight gradients come whole: a graph cannot hand them over
in parts. To run a graph that was exported, import `encode_ops` and `decode_ops`.

The last argument of an op is `backend`, resolved when the graph runs. A backward op has `needs`
behind it: which gradients it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.library import CustomOpDef


def some(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    return [grad for grad, needed in zip(grads, needs, strict=True) if needed]


def like(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """What a backward op returns, without contents."""
    return [tensor.new_empty(tensor.shape) for tensor in some(tensors, needs)]


def wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def differentiable(
    op: CustomOpDef,
    backward_op: CustomOpDef,
    count: int,
    saved: Callable[[tuple, Tensor | tuple], Sequence[Tensor | None]],
    which: int | None = None,
) -> None:
    """Register backward_op(grad, *saved(inputs, output), backend, needs) for the first `count`
    inputs of an op. which: the output that is differentiable, where there are several."""

    def setup(ctx, inputs, output) -> None:
        if which is not None:
            ctx.mark_non_differentiable(*output[:which], *output[which + 1 :])
        ctx.save_for_backward(*saved(inputs, output))
        ctx.backend, ctx.rest = inputs[-1], len(inputs) - count

    def backward(ctx, *grads):
        needs = list(ctx.needs_input_grad[:count])
        made = iter(backward_op(grads[which or 0], *ctx.saved_tensors, ctx.backend, needs))
        return *(next(made) if needed else None for needed in needs), *[None] * ctx.rest

    op.register_autograd(backward, setup_context=setup)

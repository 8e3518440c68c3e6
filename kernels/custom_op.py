"""Code shared by the custom ops, `torch.ops.sae_kernels.*`, which torch.compile needs.

The custom op of a public function stands below it, in the same file. The function calls it while
torch.compile or torch.export trace; when the graph runs, the custom op calls the function. In eager
mode a function uses its autograd.Function directly: asking is_compiling() costs 0.06 us, going
through the custom op 30 us more on a call of 20 us, and 56 us if a gradient is needed.

Custom ops are functional, tensors in and out. Codes travel as values, indices and offsets, so each
backward pass sorts them by latent anew. Weight gradients are dense: a graph cannot hand them over
in parts. Import the modules of its ops before running an exported graph.

The last argument of an op is `backend`, resolved when the graph runs. A backward op has `needs`
after it, which says which gradients it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.library import CustomOpDef  # pyright: ignore[reportPrivateImportUsage]

T = TypeVar("T")


def select_needed(items: Sequence[T | None], needs: Sequence[bool]) -> list[T]:
    """Return the items for which `needs` is true; these must not be None."""
    return [item for item, needed in zip(items, needs, strict=True) if needed and item is not None]


def empty_like_needed(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Return uninitialised tensors shaped like those that are needed, for a fake backward op."""
    return [tensor.new_empty(tensor.shape) for tensor in select_needed(tensors, needs)]


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that sums are kept in: float64 for float64, else fp32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def register_backward(
    op: CustomOpDef,
    backward_op: CustomOpDef,
    n_differentiable: int,
    saved: Callable[[tuple, Tensor | tuple], Sequence[Tensor | None]],
    differentiable_output: int | None = None,
) -> None:
    """Make the first `n_differentiable` inputs of a custom op differentiable.

    Args:
        op: The forward op; its last input is `backend`.
        backward_op: Called as backward_op(grad, *saved(inputs, output), backend, needs).
        n_differentiable: The number of leading inputs that get gradients.
        saved: Returns the tensors to save from the inputs and the output.
        differentiable_output: The output that is differentiable, if there are several.
    """

    def setup(ctx, inputs, output) -> None:
        if differentiable_output is not None:
            others = output[:differentiable_output] + output[differentiable_output + 1 :]
            ctx.mark_non_differentiable(*others)
        ctx.save_for_backward(*saved(inputs, output))
        ctx.backend, ctx.n_rest = inputs[-1], len(inputs) - n_differentiable

    def backward(ctx, *grads):
        needs = list(ctx.needs_input_grad[:n_differentiable])
        grad = grads[differentiable_output or 0]
        computed = iter(backward_op(grad, *ctx.saved_tensors, ctx.backend, needs))
        return *(next(computed) if needed else None for needed in needs), *[None] * ctx.n_rest

    op.register_autograd(backward, setup_context=setup)

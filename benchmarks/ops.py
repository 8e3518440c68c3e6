"""The single ops: ours, `reference`, and torch.compile of straightforward code.

Inputs are normally distributed (zeros would be faster), W_enc has unit rows, and biases are such
that about k latents fire on a token. `backward` times forward and backward together, with random
cotangents and dense gradients. `update` is the update of both matrices from gradients in parts:
global norm, clipping, Adam, unit-norm rows; the other providers first multiply the parts out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import dense_ops
from benchmarks.dense_ops import BANDWIDTH, PREFIXES, Inputs, Leaves, dead_latents, prefix_sizes
from benchmarks.steps import CLIP_NORM, LR, Shape
from sae_kernels import reference
from sae_kernels.adam import adam_rows_, square_norm
from sae_kernels.aux_error import aux_error
from sae_kernels.codes import Codes
from sae_kernels.decode import decode
from sae_kernels.decode_error import decode_error
from sae_kernels.decode_prefixes import decode_prefixes, matryoshka_levels
from sae_kernels.encode_batch_topk import encode_batch_topk
from sae_kernels.encode_gated import encode_gated
from sae_kernels.encode_threshold import encode_jumprelu, encode_threshold
from sae_kernels.encode_topk import encode_topk
from sae_kernels.row_grads import PairPart, RowGrads

ADAM = {"step": 10, "lr": LR, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


@dataclass(frozen=True)
class Op:
    """One op.

    Attributes:
        run: Takes inputs, leaves and a backend; returns differentiable outputs.
        parameters: Names in Inputs that get a gradient; `values` means the values of the codes.
        dense: Takes inputs and leaves; returns dense outputs of plain torch, for torch.compile.
        tests: Files in tests/kernels that must pass.
        cost: Takes a shape and the bytes per element; returns the least FLOPs and bytes of forward.
    """

    run: Callable[[Inputs, Leaves, str], list[Tensor]]
    parameters: tuple[str, ...]
    dense: Callable[[Inputs, Leaves], list[Tensor]]
    tests: tuple[str, ...]
    cost: Callable[[Shape, int], tuple[float, float]]


ENCODER = ("x", "W_enc", "b_enc", "b_dec")


def _product_cost(s: Shape, size: int) -> tuple[float, float]:
    """Return FLOPs and bytes of the encoder's product."""
    flops = 2.0 * s.batch * s.d_sae * s.d_in
    return flops, size * (s.d_sae * s.d_in + s.batch * s.d_in + 2.0 * s.batch * s.k)


def _gather_cost(s: Shape, size: int) -> tuple[float, float]:
    """Return FLOPs and bytes of a gather: each firing latent and the batch are moved once."""
    rows = min(s.d_sae, s.batch * s.k)
    return 2.0 * s.batch * s.k * s.d_in, size * (rows + s.batch) * s.d_in


def _aux_cost(s: Shape, size: int) -> tuple[float, float]:
    n = s.d_sae // 20
    return 4.0 * s.batch * n * s.d_in, size * 2.0 * (n + s.batch) * s.d_in


def _values_of(i: Inputs, p: Leaves) -> Codes:
    return Codes(p["values"], i.codes.indices, i.codes.d_sae)


def _run_prefixes(i: Inputs, p: Leaves, backend: str) -> list[Tensor]:
    levels = matryoshka_levels(i.codes, prefix_sizes(i.shape))
    codes = _values_of(i, p)
    return [decode_prefixes(codes, levels, PREFIXES, p["W_dec"], p["b_dec"], i.x, backend=backend)]


def _run_aux(i: Inputs, p: Leaves, backend: str) -> list[Tensor]:
    return [
        aux_error(
            i.x, i.x, p["W_enc"], p["b_enc"], p["W_dec"], dead_latents(i), i.shape.k_aux,
            b_dec=p["b_dec"], backend=backend,
        )
    ]  # fmt: skip


OPS: dict[str, Op] = {
    "encode_topk": Op(
        lambda i, p, b: [
            encode_topk(p["x"], p["W_enc"], p["b_enc"], i.shape.k, p["b_dec"], backend=b).values
        ],
        ENCODER,
        dense_ops.topk,
        ("test_encode_topk.py",),
        _product_cost,
    ),
    "encode_batch_topk": Op(
        lambda i, p, b: [
            encode_batch_topk(
                p["x"], p["W_enc"], p["b_enc"], i.shape.k, p["b_dec"], backend=b
            ).values
        ],
        ENCODER,
        dense_ops.batch_topk,
        ("test_encode_batch_topk.py",),
        _product_cost,
    ),
    "encode_threshold": Op(
        lambda i, p, b: [
            encode_threshold(p["x"], p["W_enc"], p["low"], p["b_dec"], backend=b).values
        ],
        ("x", "W_enc", "low", "b_dec"),
        lambda i, p: [dense_ops.pre_acts(i, p, "low").relu()],
        ("test_encode_threshold.py",),
        _product_cost,
    ),
    "encode_jumprelu": Op(
        lambda i, p, b: [
            encode_jumprelu(
                p["x"],
                p["W_enc"],
                p["b_enc"],
                p["threshold"],
                p["b_dec"],
                bandwidth=BANDWIDTH,
                backend=b,
            )[0].values
        ],  # fmt: skip
        (*ENCODER, "threshold"),
        dense_ops.jumprelu,
        ("test_encode_threshold.py",),
        _product_cost,
    ),
    "encode_gated": Op(
        lambda i, p, b: [
            codes.values
            for codes in encode_gated(
                p["x"],
                p["W_enc"],
                p["low"],
                p["b_enc"],
                torch.zeros_like(p["b_enc"]),
                p["b_dec"],
                backend=b,
            )
        ],  # fmt: skip
        (*ENCODER, "low"),
        dense_ops.gated,
        ("test_encode_gated.py",),
        _product_cost,
    ),
    "decode": Op(
        lambda i, p, b: [decode(_values_of(i, p), p["W_dec"], p["b_dec"], backend=b)],
        ("values", "W_dec", "b_dec"),
        dense_ops.decode,
        ("test_decode.py",),
        _gather_cost,
    ),
    "decode_error": Op(
        lambda i, p, b: [decode_error(_values_of(i, p), p["W_dec"], p["b_dec"], i.x, backend=b)[1]],
        ("values", "W_dec", "b_dec"),
        dense_ops.decode_error,
        ("test_decode_error.py",),
        _gather_cost,
    ),
    "decode_prefixes": Op(
        _run_prefixes,
        ("values", "W_dec", "b_dec"),
        dense_ops.decode_prefixes,
        ("test_decode_prefixes.py",),
        _gather_cost,
    ),
    "aux_error": Op(
        _run_aux, ENCODER[1:] + ("W_dec",), dense_ops.aux_error, ("test_aux_error.py",), _aux_cost
    ),
}


def parameters(op: Op, inputs: Inputs, grad: bool) -> Leaves:
    """Return all inputs as leaves by name; the op's parameters require gradients if `grad`."""
    tensors = {
        **{n: v for n, v in vars(inputs).items() if torch.is_tensor(v)},
        "values": inputs.codes.values,
    }
    return {
        name: value.detach().requires_grad_(grad and name in op.parameters)
        for name, value in tensors.items()
    }


def provider(name: str, op: Op, inputs: Inputs, *, backward: bool) -> Callable[[], list[Tensor]]:
    """Return the call to time.

    Args:
        name: ours, reference or compiled.
        op: The op.
        inputs: Its inputs.
        backward: Whether to compute the gradients of all parameters too.
    """
    leaves = parameters(op, inputs, backward)
    if name == "compiled":
        forward = torch.compile(lambda: op.dense(inputs, leaves))
    else:
        backend = "auto" if name == "ours" else name
        forward = lambda: op.run(inputs, leaves, backend)
    if not backward:

        def without_grad() -> list[Tensor]:
            with torch.no_grad():
                return forward()

        return without_grad
    params = [leaves[name] for name in op.parameters]
    cotangents = [torch.randn_like(out) for out in forward()]

    def with_grad() -> list[Tensor]:
        outputs = forward()
        return list(torch.autograd.grad(outputs, params, cotangents, allow_unused=True))

    return with_grad


def sorted_values(outputs: list[Tensor]) -> list[Tensor]:
    """Return the nonzero values of each output in order, which does not depend on slots."""
    return [
        out.double() if out.dim() == 0 else out[out != 0].double().sort().values for out in outputs
    ]


def max_err(op: Op, shape: Shape, device: str, dtype: torch.dtype) -> float:
    """Return the largest error against `reference` in float64, relative to its largest value.

    Measured on 256 tokens.
    """
    inputs = Inputs.make(shape, device, dtype, rows=256)
    with torch.no_grad():
        actual = op.run(inputs, parameters(op, inputs, False), "auto")
        wide = inputs.to(torch.float64)
        expected = op.run(wide, parameters(op, wide, False), "reference")
    worst = 0.0
    for a, b in zip(sorted_values(actual), sorted_values(expected), strict=True):
        if a.shape != b.shape:  # a pre-activation rounded to the other side of the threshold
            shared = min(len(a), len(b))
            a, b = a[-shared:], b[-shared:]
        scale = b.abs().max().clamp_min(1e-30)
        worst = max(worst, ((a - b).abs().max() / scale).item())
    return worst


class Update:
    """The update of both matrices from gradients in parts.

    It consists of the global norm, clipping, Adam and unit-norm rows.
    """

    tests = ("test_adam.py", "test_row_grads.py")

    def __init__(self, inputs: Inputs) -> None:
        wide = torch.float32
        codes, pairs = inputs.codes, inputs.codes.by_latent()
        part = RowGrads([PairPart(pairs, codes.values.flatten(), inputs.x)])
        self.matrices = []
        for unit_norm, rows in ((False, inputs.W_enc.t()), (True, inputs.W_dec)):
            master = rows.to(wide, copy=True) if rows.dtype != wide else None
            moments = [torch.zeros_like(rows, dtype=wide) for _ in range(2)]
            self.matrices.append((rows.clone(), moments, master, part, unit_norm))

    def ours(self) -> list[Tensor]:
        """Update with our kernels."""
        squares = [square_norm(rows, None, part) for rows, _, _, part, _ in self.matrices]
        scale = (CLIP_NORM / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
        for rows, moments, master, part, unit_norm in self.matrices:
            adam_rows_(
                rows, None, *moments, unit_norm=unit_norm, row_grads=part, scale=scale,
                master=master, **ADAM,
            )  # fmt: skip
        return []

    def plain(self) -> list[Tensor]:
        """Update with torch's fused Adam."""
        grads = [reference.dense_gradient(m[0].shape, None, m[3]).float() for m in self.matrices]
        scale = torch.nn.utils.get_total_norm(grads).reciprocal().mul(CLIP_NORM).clamp(max=1.0)
        for (rows, moments, master, _, unit_norm), grad in zip(self.matrices, grads, strict=True):
            target = rows if master is None else master
            grad *= scale
            if unit_norm:
                grad -= (grad * target).sum(1, keepdim=True) * target
            torch._fused_adam_(
                [target], [grad], [moments[0]], [moments[1]], [],
                [torch.tensor(10.0, device=rows.device)],
                lr=LR, beta1=0.9, beta2=0.999, eps=1e-8,
                weight_decay=0.0, amsgrad=False, maximize=False,
            )  # fmt: skip
            if unit_norm:
                target /= target.norm(dim=1, keepdim=True)
            if master is not None:
                rows.copy_(master)
        return []

    @staticmethod
    def cost(s: Shape) -> tuple[float, float]:
        """Return FLOPs and bytes; fp32 parameters and moments are read and written."""
        return 24.0 * s.d_sae * s.d_in, 2 * 24.0 * s.d_sae * s.d_in

"""The ops one by one: ours, `reference`, and torch.compile of the obvious code.

Inputs are normal (zeros would flatter), W_enc has unit rows, biases make about k latents fire on a
token. `backward` times forward and backward together, with a random cotangent and whole gradients.
`update` is what a step does with both matrices' gradients in parts: global norm, clipping, Adam,
unit-norm rows; the others are given the parts and multiply them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.steps import CLIP_NORM, LR, Shape
from sae.autoencoder.init import unit_rows
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

BANDWIDTH = 1e-2
PREFIXES = 5
ADAM = {"step": 10, "lr": LR, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


@dataclass
class Inputs:
    """What every op is made from, on one device in one dtype."""

    shape: Shape
    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    low: Tensor
    threshold: Tensor
    W_dec: Tensor
    b_dec: Tensor
    codes: Codes

    @classmethod
    def make(cls, shape: Shape, device: str, dtype: torch.dtype, rows: int | None = None) -> Inputs:
        """rows: only so many tokens of the batch."""
        generator = torch.Generator().manual_seed(2)
        draw = lambda *size: torch.randn(*size, generator=generator)
        d_in, d_sae = shape.d_in, shape.d_sae
        x = draw(shape.batch, d_in)[:rows].to(device, dtype)
        directions = unit_rows(d_sae, d_in, seed=0, dtype=torch.float32).to(device, dtype)
        share = torch.tensor(shape.k / d_sae, dtype=torch.float64)
        cut = torch.special.ndtri(1 - share).item()
        vector = lambda value: torch.full((d_sae,), value, device=device, dtype=dtype)
        zeros = torch.zeros(d_in, device=device, dtype=dtype)
        made = cls(
            shape,
            x,
            directions.clone().t(),
            vector(0.0),
            vector(-cut),
            vector(cut),
            directions,
            zeros,
            None,
        )
        with torch.no_grad():
            made.codes = encode_topk(x, made.W_enc, made.b_enc, shape.k, zeros)
        return made

    def to(self, dtype: torch.dtype) -> Inputs:
        fields = {
            name: value.to(dtype) if torch.is_tensor(value) else value
            for name, value in vars(self).items()
        }
        old = self.codes
        fields["codes"] = Codes(old.values.to(dtype), old.indices, old.d_sae)
        return Inputs(**fields)


@dataclass(frozen=True)
class Op:
    """One op.

    Args:
        run: (inputs, parameters, backend) -> differentiable outputs.
        parameters: names in Inputs that get a gradient; `values` stands for the codes' values.
        obvious: (inputs, parameters) -> dense outputs, plain torch, for torch.compile; None where
            `reference` is already that.
        tests: files that must be green, below tests/kernels.
        cost: shape, bytes an element -> (flops, bytes) of the least that forward can do with.
    """

    run: Callable[[Inputs, dict[str, Tensor], str], list[Tensor]]
    parameters: tuple[str, ...]
    obvious: Callable[[Inputs, dict[str, Tensor]], list[Tensor]]
    tests: tuple[str, ...]
    cost: Callable[[Shape, int], tuple[float, float]]


ENCODER = ("x", "W_enc", "b_enc", "b_dec")


def _product_cost(s: Shape, size: int) -> tuple[float, float]:
    flops = 2.0 * s.batch * s.d_sae * s.d_in
    return flops, size * (s.d_sae * s.d_in + s.batch * s.d_in + 2.0 * s.batch * s.k)


def _gather_cost(s: Shape, size: int) -> tuple[float, float]:
    """Every latent that fires is read once, the batch is read or written once."""
    rows = min(s.d_sae, s.batch * s.k)
    return 2.0 * s.batch * s.k * s.d_in, size * (rows + s.batch) * s.d_in


def _pre(i: Inputs, p: dict[str, Tensor], bias: str = "b_enc") -> Tensor:
    return (p["x"] - p["b_dec"]) @ p["W_enc"] + p[bias]


def _dense_topk(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    return [_pre(i, p).topk(i.shape.k, dim=1).values.relu()]


def _dense_batch_topk(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    return [_pre(i, p).flatten().topk(i.shape.k * len(i.x)).values.relu()]


def _dense_jumprelu(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    pre, theta = _pre(i, p), p["threshold"]
    near = (pre.detach() - theta.detach()).abs() < BANDWIDTH / 2
    step = -near.to(pre.dtype) / BANDWIDTH * (theta - theta.detach())
    return [pre * (pre > theta) + theta.detach() * step]


def _dense_gated(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    product = (p["x"] - p["b_dec"]) @ p["W_enc"]
    gate = product + p["low"]
    return [(gate > 0) * (product + p["b_enc"]).relu(), gate.relu()]


def _values_of(i: Inputs, p: dict[str, Tensor]) -> Codes:
    return Codes(p["values"], i.codes.indices, i.codes.d_sae)


def _dense_decode(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    acts = p["values"].new_zeros(len(i.x), i.shape.d_sae).scatter(1, i.codes.indices, p["values"])
    return [acts @ p["W_dec"] + p["b_dec"]]


def _dense_error(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    return [(i.x - _dense_decode(i, p)[0]).float().square().sum()]


def _prefixes(s: Shape) -> list[int]:
    return [max(1, s.d_sae >> shift) for shift in reversed(range(PREFIXES))]


def _run_prefixes(i: Inputs, p: dict[str, Tensor], backend: str) -> list[Tensor]:
    levels = matryoshka_levels(i.codes, _prefixes(i.shape))
    codes = _values_of(i, p)
    return [decode_prefixes(codes, levels, PREFIXES, p["W_dec"], p["b_dec"], i.x, backend=backend)]


def _dense_prefixes(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    acts = p["values"].new_zeros(len(i.x), i.shape.d_sae).scatter(1, i.codes.indices, p["values"])
    errors = [i.x - acts[:, :n] @ p["W_dec"][:n] - p["b_dec"] for n in _prefixes(i.shape)]
    return [torch.stack([e.float().square().sum() for e in errors])]


def _listed(i: Inputs) -> Tensor:
    return torch.arange(max(1, i.shape.d_sae // 20), device=i.x.device)


def _run_aux(i: Inputs, p: dict[str, Tensor], backend: str) -> list[Tensor]:
    return [
        aux_error(
            i.x, i.x, p["W_enc"], p["b_enc"], p["W_dec"], _listed(i), i.shape.k_aux,
            b_dec=p["b_dec"], backend=backend,
        )
    ]  # fmt: skip


def _dense_aux(i: Inputs, p: dict[str, Tensor]) -> list[Tensor]:
    latents, k = _listed(i), i.shape.k_aux
    return [
        reference.aux_error(i.x, i.x, p["W_enc"], p["b_enc"], p["W_dec"], latents, k, p["b_dec"])
    ]


def _aux_cost(s: Shape, size: int) -> tuple[float, float]:
    n = s.d_sae // 20
    return 4.0 * s.batch * n * s.d_in, size * 2.0 * (n + s.batch) * s.d_in


OPS: dict[str, Op] = {
    "encode_topk": Op(
        lambda i, p, b: [
            encode_topk(p["x"], p["W_enc"], p["b_enc"], i.shape.k, p["b_dec"], backend=b).values
        ],
        ENCODER,
        _dense_topk,
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
        _dense_batch_topk,
        ("test_encode_batch_topk.py",),
        _product_cost,
    ),
    "encode_threshold": Op(
        lambda i, p, b: [
            encode_threshold(p["x"], p["W_enc"], p["low"], p["b_dec"], backend=b).values
        ],
        ("x", "W_enc", "low", "b_dec"),
        lambda i, p: [_pre(i, p, "low").relu()],
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
        _dense_jumprelu,
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
        _dense_gated,
        ("test_encode_gated.py",),
        _product_cost,
    ),
    "decode": Op(
        lambda i, p, b: [decode(_values_of(i, p), p["W_dec"], p["b_dec"], backend=b)],
        ("values", "W_dec", "b_dec"),
        _dense_decode,
        ("test_decode.py",),
        _gather_cost,
    ),
    "decode_error": Op(
        lambda i, p, b: [decode_error(_values_of(i, p), p["W_dec"], p["b_dec"], i.x, backend=b)[1]],
        ("values", "W_dec", "b_dec"),
        _dense_error,
        ("test_decode_error.py",),
        _gather_cost,
    ),
    "decode_prefixes": Op(
        _run_prefixes,
        ("values", "W_dec", "b_dec"),
        _dense_prefixes,
        ("test_decode_prefixes.py",),
        _gather_cost,
    ),
    "aux_error": Op(
        _run_aux, ENCODER[1:] + ("W_dec",), _dense_aux, ("test_aux_error.py",), _aux_cost
    ),
}


def parameters(op: Op, inputs: Inputs, grad: bool) -> dict[str, Tensor]:
    """Leaves of this op's inputs; all of them, so that an op can take what it likes."""
    found = {
        **{n: v for n, v in vars(inputs).items() if torch.is_tensor(v)},
        "values": inputs.codes.values,
    }
    return {
        name: value.detach().requires_grad_(grad and name in op.parameters)
        for name, value in found.items()
    }


def provider(name: str, op: Op, inputs: Inputs, *, backward: bool) -> Callable[[], list[Tensor]]:
    """What is timed: outputs, and gradients of all parameters when `backward`."""
    leaves = parameters(op, inputs, backward)
    if name == "compiled":
        plain = torch.compile(lambda: op.obvious(inputs, leaves))
        forward = plain
    else:
        backend = "auto" if name == "ours" else name
        forward = lambda: op.run(inputs, leaves, backend)
    if not backward:

        def call() -> list[Tensor]:
            with torch.no_grad():
                return forward()

        return call
    wanted = [leaves[name] for name in op.parameters]
    cotangents = [torch.randn_like(out) for out in forward()]

    def both() -> list[Tensor]:
        outputs = forward()
        return list(torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True))

    return both


def sorted_values(outputs: list[Tensor]) -> list[Tensor]:
    """Outputs in a form that does not depend on the order of slots, for comparison."""
    return [
        out.double() if out.dim() == 0 else out[out != 0].double().sort().values for out in outputs
    ]


def max_err(op: Op, shape: Shape, device: str, dtype: torch.dtype) -> float:
    """Against `reference` in float64 on 256 tokens, relative to the largest value there."""
    inputs = Inputs.make(shape, device, dtype, rows=256)
    with torch.no_grad():
        got = op.run(inputs, parameters(op, inputs, False), "auto")
        wide = inputs.to(torch.float64)
        want = op.run(wide, parameters(op, wide, False), "reference")
    worst = 0.0
    for a, b in zip(sorted_values(got), sorted_values(want), strict=True):
        if a.shape != b.shape:  # a threshold falls between two roundings of one pre-activation
            keep = min(len(a), len(b))
            a, b = a[-keep:], b[-keep:]
        scale = b.abs().max().clamp_min(1e-30)
        worst = max(worst, ((a - b).abs().max() / scale).item())
    return worst


class Update:
    """Global norm, clipping, Adam and unit-norm rows on both matrices, from gradients in parts."""

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
        squares = [square_norm(rows, None, part) for rows, _, _, part, _ in self.matrices]
        scale = (CLIP_NORM / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
        for rows, moments, master, part, unit_norm in self.matrices:
            adam_rows_(
                rows, None, *moments, unit_norm=unit_norm, row_grads=part, scale=scale,
                master=master, **ADAM,
            )  # fmt: skip
        return []

    def plain(self) -> list[Tensor]:
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
        """fp32 p, m and v read and written, for both matrices."""
        return 24.0 * s.d_sae * s.d_in, 2 * 24.0 * s.d_sae * s.d_in

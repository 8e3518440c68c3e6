"""The inputs of every op in `benchmarks.ops`, and straightforward dense code for torch.compile.

Each function takes the inputs and the leaves that get gradients, by name, and returns dense outputs
of plain torch code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.steps import Shape
from sae.autoencoder.init import unit_rows
from sae_kernels import reference
from sae_kernels.codes import Codes
from sae_kernels.encode_topk import encode_topk

BANDWIDTH = 1e-2
PREFIXES = 5
Leaves = dict[str, Tensor]


@dataclass
class Inputs:
    """The tensors that the ops take, on one device in one dtype."""

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
        """Draw inputs.

        Args:
            shape: Sizes.
            device: Device of the tensors.
            dtype: Their dtype.
            rows: Number of tokens; `shape.batch` by default.
        """
        generator = torch.Generator().manual_seed(2)
        draw = lambda *size: torch.randn(*size, generator=generator)
        d_in, d_sae = shape.d_in, shape.d_sae
        x = draw(shape.batch, d_in)[:rows].to(device, dtype)
        directions = unit_rows(d_sae, d_in, seed=0, dtype=torch.float32).to(device, dtype)
        share = torch.tensor(shape.k / d_sae, dtype=torch.float64)
        cut = torch.special.ndtri(1 - share).item()
        vector = lambda value: torch.full((d_sae,), value, device=device, dtype=dtype)
        zeros = torch.zeros(d_in, device=device, dtype=dtype)
        inputs = cls(
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
            inputs.codes = encode_topk(x, inputs.W_enc, inputs.b_enc, shape.k, zeros)
        return inputs

    def to(self, dtype: torch.dtype) -> Inputs:
        """Return the inputs in another dtype."""
        fields = {
            name: value.to(dtype) if torch.is_tensor(value) else value
            for name, value in vars(self).items()
        }
        codes = self.codes
        fields["codes"] = Codes(codes.values.to(dtype), codes.indices, codes.d_sae)
        return Inputs(**fields)


def prefix_sizes(s: Shape) -> list[int]:
    return [max(1, s.d_sae >> shift) for shift in reversed(range(PREFIXES))]


def dead_latents(i: Inputs) -> Tensor:
    return torch.arange(max(1, i.shape.d_sae // 20), device=i.x.device)


def pre_acts(i: Inputs, p: Leaves, bias: str = "b_enc") -> Tensor:
    return (p["x"] - p["b_dec"]) @ p["W_enc"] + p[bias]


def topk(i: Inputs, p: Leaves) -> list[Tensor]:
    return [pre_acts(i, p).topk(i.shape.k, dim=1).values.relu()]


def batch_topk(i: Inputs, p: Leaves) -> list[Tensor]:
    return [pre_acts(i, p).flatten().topk(i.shape.k * len(i.x)).values.relu()]


def jumprelu(i: Inputs, p: Leaves) -> list[Tensor]:
    pre, theta = pre_acts(i, p), p["threshold"]
    near = (pre.detach() - theta.detach()).abs() < BANDWIDTH / 2
    step = -near.to(pre.dtype) / BANDWIDTH * (theta - theta.detach())
    return [pre * (pre > theta) + theta.detach() * step]


def gated(i: Inputs, p: Leaves) -> list[Tensor]:
    product = (p["x"] - p["b_dec"]) @ p["W_enc"]
    gate = product + p["low"]
    return [(gate > 0) * (product + p["b_enc"]).relu(), gate.relu()]


def decode(i: Inputs, p: Leaves) -> list[Tensor]:
    acts = p["values"].new_zeros(len(i.x), i.shape.d_sae).scatter(1, i.codes.indices, p["values"])
    return [acts @ p["W_dec"] + p["b_dec"]]


def decode_error(i: Inputs, p: Leaves) -> list[Tensor]:
    return [(i.x - decode(i, p)[0]).float().square().sum()]


def decode_prefixes(i: Inputs, p: Leaves) -> list[Tensor]:
    acts = p["values"].new_zeros(len(i.x), i.shape.d_sae).scatter(1, i.codes.indices, p["values"])
    errors = [i.x - acts[:, :n] @ p["W_dec"][:n] - p["b_dec"] for n in prefix_sizes(i.shape)]
    return [torch.stack([e.float().square().sum() for e in errors])]


def aux_error(i: Inputs, p: Leaves) -> list[Tensor]:
    latents, k = dead_latents(i), i.shape.k_aux
    return [
        reference.aux_error(i.x, i.x, p["W_enc"], p["b_enc"], p["W_dec"], latents, k, p["b_dec"])
    ]

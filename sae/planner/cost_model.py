"""FLOPs and bytes of a training step, counted, and how long a GPU would take at the least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from sae.activations import Source
from sae.errors import UserError
from sae.planner.memory import MemoryEstimate, firing
from sae.training import Learner
from sae.training.train_config import TrainConfig


@dataclass(frozen=True)
class GPU:
    """From its maker's data sheet, without structured sparsity: TFLOP/s of products by what is
    multiplied, TB/s of its memory, and GB of it."""

    bf16: float
    tf32: float
    fp32: float
    bandwidth: float
    memory: float


GPUS = {
    "h100": GPU(989, 494, 67, 3.35, 80),  # SXM
    "h200": GPU(989, 494, 67, 4.8, 141),  # SXM
    "a100": GPU(312, 156, 19.5, 2.04, 80),  # SXM, 80 GB
    "b200": GPU(2250, 1125, 75, 7.7, 180),  # HGX, an eighth
    "l40s": GPU(362, 183, 91.6, 0.864, 48),
    "rtx4090": GPU(165, 82.6, 82.6, 1.008, 24),  # products summed in fp32
}


@dataclass(frozen=True)
class Work:
    """FLOPs, and bytes that must be read or written once."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, factor: float) -> Work:
        return Work(self.flops * factor, self.bytes * factor)

    def seconds(self, gpu: GPU, kind: str) -> float:
        """The longer of computing and moving, each at the peak."""
        return max(self.flops / getattr(gpu, kind) / 1e12, self.bytes / gpu.bandwidth / 1e12)


def named_gpu(name: str) -> GPU:
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name} is not known; choose among: {', '.join(GPUS)}")
    return GPUS[name.lower()]


def step_work(
    recipe: TrainConfig, learner: Learner, needs: MemoryEstimate, batch_size: int
) -> dict[str, Work]:
    """One step by its stages, with no latent dead.

    With B rows, F latents of which L fire on a row, widths d_in and d_out, P parameters in words of
    w bytes:

    | stage | FLOPs | bytes |
    |---|---|---|
    | encode: the product | 2 B F d_in | W_enc once, x |
    | decode: gather and sum | 2 B L d_out | rows of W_dec that fire, y, the residual |
    | backward: dots with W_dec, sums for both matrices | 2 B L (2 d_out + d_in) | the same, and x |
    | update: norm, Adam | 14 P | parameters, moments, masters, averages, read and written |

    Unrolled layers cost two products of the encoder's size each, and six more backward.
    """
    sae = learner.sae
    rows, d_in, d_out = batch_size * recipe.accumulate, sae.d_in, sae.d_out
    word, groups = sae.W_dec.itemsize, sae.site.groups
    slots = rows * firing(recipe)
    product = 2 * rows * sae.d_sae * d_in
    layers = recipe.sparsity.unrolled_layers
    x, y = rows * d_in * groups * word, rows * d_out * word
    pairs = 32 * slots  # values and places, and the same by latent
    touched = min(slots, sae.d_sae) * word  # each latent's row once, from memory
    kept = needs.parameters + needs.optimiser + needs.average
    return {
        "encode": Work(product * (1 + 2 * layers), sae.d_sae * d_in * word + x + slots * 12),
        "decode": Work(2 * slots * d_out, touched * d_out + 2 * y + slots * 12),
        "backward": Work(
            2 * slots * (2 * d_out + d_in) + 6 * layers * product,
            touched * d_out + x + y + pairs + 2 * needs.gradients,
        ),
        "update": Work(14 * needs.count, 2 * kept),
    }


def harvest_work(source: Source) -> Work:
    """Of one activation; worlds are drawn, and count as nothing."""
    if (text := source.text_model()) is None:
        return Work(0, 0)
    contexts = next(text.contexts("train"))
    with FlopCounterMode(display=False) as counter:
        text.model.activations(contexts.tokens, contexts.attention_mask)
    rows = max(int(contexts.position_mask.sum()), 1)
    weights = sum(p.numel() * p.itemsize for p in text.model.model.parameters())
    written = sum(source.widths.values()) * source.activation_dtype.itemsize
    return Work(counter.get_total_flops() / rows, weights / rows + written)


def kinds(recipe: TrainConfig, source: Source) -> tuple[str, str]:
    """In what a GPU multiplies: in the kernels, where fp32 goes as TF32, and in the model."""
    return (
        "tf32" if recipe.sae_dtype == torch.float32 else "bf16",
        "fp32" if source.activation_dtype == torch.float32 else "bf16",
    )

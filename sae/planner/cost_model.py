"""Count FLOPs and bytes of a training step, and compute the least time of a GPU for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from sae.activations import Source
from sae.errors import UserError
from sae.planner.memory import MemoryEstimate
from sae.training import Learner
from sae.training.train_config import TrainConfig


@dataclass(frozen=True)
class GPU:
    """Peak rates of a GPU from its data sheet, without structured sparsity.

    Attributes:
        bf16: TFLOP/s of matrix products in bfloat16.
        tf32: TFLOP/s of matrix products in TF32.
        fp32: TFLOP/s in float32.
        bandwidth: Memory bandwidth in TB/s.
        memory: Memory in GB.
    """

    bf16: float
    tf32: float
    fp32: float
    bandwidth: float
    memory: float


GPUS = {
    "h100": GPU(989, 494, 67, 3.35, 80),  # SXM
    "h200": GPU(989, 494, 67, 4.8, 141),  # SXM
    "a100": GPU(312, 156, 19.5, 2.04, 80),  # SXM, 80 GB
    "b200": GPU(2250, 1125, 75, 7.7, 180),  # one of the eight in an HGX
    "l40s": GPU(362, 183, 91.6, 0.864, 48),
    "rtx4090": GPU(165, 82.6, 82.6, 1.008, 24),  # products accumulated in fp32
}


@dataclass(frozen=True)
class Work:
    """FLOPs, and the bytes that must be read or written at least once."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, factor: float) -> Work:
        """Return the work of doing this `factor` times."""
        return Work(self.flops * factor, self.bytes * factor)

    def seconds(self, gpu: GPU, kind: str) -> float:
        """Return the time at peak rates: the longer of arithmetic and memory traffic.

        Args:
            gpu: The GPU.
            kind: Number format of products: bf16, tf32 or fp32.
        """
        return max(self.flops / getattr(gpu, kind) / 1e12, self.bytes / gpu.bandwidth / 1e12)


def find_gpu(name: str) -> GPU:
    """Return the GPU with a name such as h100. Raises UserError for an unknown name."""
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name} is not known; choose among: {', '.join(GPUS)}")
    return GPUS[name.lower()]


def step_work(
    config: TrainConfig, learner: Learner, memory: MemoryEstimate, batch_size: int
) -> dict[str, Work]:
    """Return the work of each stage of a step, without dead latents.

    With B rows, F latents, L of them active on a row, widths d_in and d_out, and P parameters of w
    bytes each:

    | stage | FLOPs | bytes |
    |---|---|---|
    | encode: the product | 2 B F d_in | W_enc once, x |
    | decode: gather and sum | 2 B L d_out | rows of active latents in W_dec, y, the residual |
    | backward: dots with W_dec, sums for both matrices | 2 B L (2 d_out + d_in) | the same, and x |
    | update: norm, Adam | 14 P | parameters, moments, masters, averages, read and written |

    Unrolled layers cost two products of the encoder's size each, and six more backward.
    """
    sae = learner.sae
    rows, d_in, d_out = batch_size * config.accumulate, sae.d_in, sae.d_out
    word, groups = sae.W_dec.itemsize, sae.site.groups
    slots = rows * config.sparsity.peak_l0
    product = 2 * rows * sae.d_sae * d_in
    layers = config.sparsity.unrolled_layers
    x, y = rows * d_in * groups * word, rows * d_out * word
    pairs = 32 * slots  # values and places, and the same by latent
    touched = min(slots, sae.d_sae) * word  # the row of each active latent is read once
    state = memory.parameters + memory.optimizer + memory.average
    return {
        "encode": Work(product * (1 + 2 * layers), sae.d_sae * d_in * word + x + slots * 12),
        "decode": Work(2 * slots * d_out, touched * d_out + 2 * y + slots * 12),
        "backward": Work(
            2 * slots * (2 * d_out + d_in) + 6 * layers * product,
            touched * d_out + x + y + pairs + 2 * memory.gradients,
        ),
        "update": Work(14 * memory.parameter_count, 2 * state),
    }


def harvest_work(source: Source) -> Work:
    """Return the model's work for one activation; sources without a model count as no work."""
    if (text := source.text_model()) is None:
        return Work(0, 0)
    contexts = next(text.contexts("train"))
    with FlopCounterMode(display=False) as counter:
        text.model.activations(contexts.tokens, contexts.attention_mask)
    rows = max(int(contexts.position_mask.sum()), 1)
    weights = sum(p.numel() * p.itemsize for p in text.model.model.parameters())
    written = sum(source.widths.values()) * source.activation_dtype.itemsize
    return Work(counter.get_total_flops() / rows, weights / rows + written)


def number_formats(config: TrainConfig, source: Source) -> tuple[str, str]:
    """Return the number formats of products in the kernels (fp32 as TF32) and in the model."""
    return (
        "tf32" if config.sae_dtype == torch.float32 else "bf16",
        "fp32" if source.activation_dtype == torch.float32 else "bf16",
    )

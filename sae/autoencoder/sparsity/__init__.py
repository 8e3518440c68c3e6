"""Sparsity rules: which latents fire. To add a rule: one file here, its test, one line below."""

from sae.autoencoder.sparsity.abs_topk import AbsTopK
from sae.autoencoder.sparsity.base import (
    EncoderOutput,
    EncoderWeights,
    ExtraParam,
    Sparsity,
    ThresholdParam,
)
from sae.autoencoder.sparsity.batch_topk import BatchTopK
from sae.autoencoder.sparsity.fixed_k import AnnealedK, FixedK
from sae.autoencoder.sparsity.gated import Gated
from sae.autoencoder.sparsity.group_max import GroupMax
from sae.autoencoder.sparsity.jumprelu import JumpReLU
from sae.autoencoder.sparsity.matching_pursuit import MatchingPursuit
from sae.autoencoder.sparsity.relu import ReLU
from sae.autoencoder.sparsity.topk import TopK
from sae.autoencoder.sparsity.unrolled import Unrolled

__all__ = [
    "AbsTopK",
    "AnnealedK",
    "BatchTopK",
    "EncoderOutput",
    "EncoderWeights",
    "ExtraParam",
    "FixedK",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "MatchingPursuit",
    "ReLU",
    "Sparsity",
    "ThresholdParam",
    "TopK",
    "Unrolled",
]

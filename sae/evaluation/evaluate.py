"""Held-out metrics of an SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.errors import UserError
from sae.metrics.decoder_directions import (
    dictionary_mcc_nulls,
    dictionary_mcc_signed,
    mmcs,
    mmcs_uniqueness,
)
from sae.metrics.downstream import downstream
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU
from sae.metrics.reconstruction import Cosine, RelativeReconstructionBias, Shrinkage
from sae.progress import progress

if TYPE_CHECKING:
    from sae.activations import Source
    from sae.autoencoder import SAE
    from sae.evaluation.samples import Samples

_BLOCK = 4096


@torch.no_grad()
def evaluate(
    sae: SAE,
    source: Source,
    *,
    max_tokens: int = 65_536,
    downstream_tokens: int = 16_384,
    firing: Firing | None = None,
    samples: Samples | None = None,
    seed: int = 0,
) -> dict[str, float | int]:
    """Return the metrics of `sae` on the held-out split of `source`; plain numbers, for JSON.

    Always returns tokens, fvu, l0, cosine, shrinkage, relative_reconstruction_bias and
    never_fired_fraction. With a model on text it adds those of `Downstream`; with a source that
    knows the true features it adds dictionary_mcc_signed, its chance level and the two nulls behind
    it, mmcs and mmcs_uniqueness.

    Args:
        sae: takes raw activations.
        source: a source that is set up.
        max_tokens: held-out activations to read.
        downstream_tokens: number of them on which the model is run with the SAE in place, in five
            passes; 0 leaves those metrics out.
        firing: counts into this, for callers that need the density of every latent.
        samples: stores rows in this, for `sae.evaluation.measure`.
        seed: seed of a world's samples.

    Raises:
        UserError: the held-out split is empty.
    """
    site, device = sae.site.bind(source.widths), sae.W_dec.device
    features, text = source.known_features(), source.text_model()
    firing = firing or Firing(sae.d_sae, device)
    fvu, cosine, shrinkage = FVU(sae.d_out, device), Cosine(device), Shrinkage(device)
    bias = RelativeReconstructionBias(device)
    tokens, size = 0, min(_BLOCK, max_tokens)
    with progress("reading held-out activations", max_tokens) as task:
        for index in range(-(-max_tokens // _BLOCK)):
            block = source.block("held_out", index, size, seed)
            block = block.rows(slice(0, max_tokens - tokens))
            if len(block) == 0:
                break
            x, y = site.pair({hook: block.acts[hook].to(device) for hook in site.hooks})
            codes = sae.encode(x)
            y_hat = sae.decode(codes, x)
            firing.update(codes)
            for metric in (fvu, cosine, shrinkage, bias):
                metric.update(y, y_hat)
            if samples is not None:
                z = None
                if features is not None:
                    z = features.codes("held_out", index, size, seed).rows(slice(0, len(block)))
                samples.update(block, x, y, codes, y_hat, z)
            tokens += len(block)
            task.advance(len(block))
    if tokens == 0:
        raise UserError("the held-out split has no activations; give more text or a larger share")
    metrics: dict[str, float | int] = {
        "tokens": tokens,
        "fvu": fvu.compute(),
        "l0": firing.l0(),
        "cosine": cosine.compute(),
        "shrinkage": shrinkage.compute(),
        "relative_reconstruction_bias": bias.compute(),
        "never_fired_fraction": firing.never_fired_fraction(),
    }
    if text is not None and downstream_tokens:
        with progress("running the model with the SAE in place"):
            output = downstream(sae, text, mean=fvu.mean, max_tokens=downstream_tokens)
        metrics |= output.metrics()
        if samples is not None:
            samples.downstream = output
    if features is not None:
        truth, training = features.truth, training_samples(sae, source, seed)
        if samples is not None:
            samples.training = training
        metrics |= {
            "dictionary_mcc_signed": dictionary_mcc_signed(sae.W_dec, truth),
            **dictionary_mcc_nulls(truth, sae.d_sae, training),
            "mmcs": mmcs(sae.W_dec, truth),
            "mmcs_uniqueness": mmcs_uniqueness(sae.W_dec, truth),
        }
    return metrics


def training_samples(sae: SAE, source: Source, seed: int) -> Tensor:
    """Return training activations that `sae` predicts [n, d_out], at least d_sae rows."""
    site = sae.site.bind(source.widths)
    acts = source.block("train", 0, max(_BLOCK, sae.d_sae), seed).acts
    return site.pair({hook: acts[hook] for hook in site.hooks})[1]

"""The held-out figures of a run, in one flat dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sae.errors import UserError
from sae.metrics.decoder_directions import (
    dictionary_mcc_chance,
    dictionary_mcc_signed,
    mmcs,
    mmcs_uniqueness,
)
from sae.metrics.downstream import downstream
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU
from sae.metrics.reconstruction import Cosine, RelativeReconstructionBias, Shrinkage

if TYPE_CHECKING:
    from sae.activations import Source
    from sae.autoencoder import SAE
    from sae.evaluation.samples import Sample

_BLOCK = 4096


@torch.no_grad()
def evaluate(
    sae: SAE,
    source: Source,
    *,
    max_tokens: int = 65_536,
    downstream_tokens: int = 16_384,
    firing: Firing | None = None,
    sample: Sample | None = None,
    seed: int = 0,
) -> dict[str, float | int]:
    """Figures of `sae` on the held-out split of `source`; plain numbers, ready for JSON.

    Args:
        sae: takes raw activations.
        source: a world or a model on text.
        max_tokens: held-out activations read.
        downstream_tokens: how many of them the model is run to its end for, five times over;
            0 leaves those figures out.
        firing: counted into, for who wants the density of every latent afterwards.
        sample: filled, for who wants more of the same rows afterwards: `sae.evaluation.registry`.
        seed: of the world's samples.

    Always: tokens, fvu, l0, cosine, shrinkage, relative_reconstruction_bias,
    never_fired_fraction. With a model those of `Downstream`. With a world (known features)
    dictionary_mcc_signed, its chance level, mmcs, mmcs_uniqueness. Raises
    UserError when the split is empty.
    """
    site, device = sae.site.bind(source.widths), sae.W_dec.device
    features, text = source.known_features(), source.text_model()
    firing = firing or Firing(sae.d_sae, device)
    fvu, cosine, shrinkage = FVU(sae.d_out, device), Cosine(device), Shrinkage(device)
    bias = RelativeReconstructionBias(device)
    tokens, size = 0, min(_BLOCK, max_tokens)
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
        if sample is not None:
            z = None
            if features is not None:
                z = features.codes("held_out", index, size, seed).rows(slice(0, len(block)))
            sample.update(block, x, y, codes, y_hat, z)
        tokens += len(block)
    if tokens == 0:
        raise UserError("the held-out split has no activations; give more text or a larger share")
    figures: dict[str, float | int] = {
        "tokens": tokens,
        "fvu": fvu.compute(),
        "l0": firing.l0(),
        "cosine": cosine.compute(),
        "shrinkage": shrinkage.compute(),
        "relative_reconstruction_bias": bias.compute(),
        "never_fired_fraction": firing.never_fired_fraction(),
    }
    if text is not None and downstream_tokens:
        spliced = downstream(sae, text, mean=fvu.mean, max_tokens=downstream_tokens)
        figures |= spliced.figures()
        if sample is not None:
            sample.spliced = spliced
    if features is not None:
        truth = features.truth
        figures |= {
            "dictionary_mcc_signed": dictionary_mcc_signed(sae.W_dec, truth),
            "dictionary_mcc_signed_chance": dictionary_mcc_chance(truth, sae.d_sae),
            "mmcs": mmcs(sae.W_dec, truth),
            "mmcs_uniqueness": mmcs_uniqueness(sae.W_dec, truth),
        }
    return figures

"""SAELens (version 6): `cfg.json` and `sae_weights.safetensors`, architecture `topk`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.formats._folder import (
    METADATA,
    demand,
    read_config,
    read_tensors,
    whole_number,
    write_folder,
)
from sae.formats._topk import built, checked_topk

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# Below 6, and where no version is given, SAELens itself reads another, flat configuration.
OLDEST = 6
WRITTEN_AS = "6.0.0"
# Our metadata key -> theirs.
NAMES = {"model": "model_name", "hook": "hook_name", "context_size": "context_size"}


def write(sae: SAE, folder: str | Path) -> None:
    """Write a TopK SAE so that `sae_lens.SAE.load_from_disk(folder)` computes the same.

    Their codes are relu(top-k of (x - b_dec) W_enc + b_enc), as ours, so every tensor goes as it
    is. Metadata that SAELens has a name for goes under that name, and all of it under
    `metadata.sae_workbench`, which SAELens carries along. Written all or nothing; `folder` is new
    or holds nothing but an older such SAE.

    Raises:
        UserError: not a TopK autoencoder, or `folder` holds other files.
    """
    sparsity = checked_topk(sae, "saelens")
    hook = sae.site.hooks[0] if sae.site.hooks else None
    known = {"hook": hook, **sae.metadata}
    config = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "topk",
        "k": sparsity.k,
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": WRITTEN_AS,
            "sae_lens_training_version": None,  # else SAELens fills in its own
            **{theirs: known.get(ours) for ours, theirs in NAMES.items()},
            METADATA: sae.metadata,
        },
    }
    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    write_folder(folder, (CONFIG, config), (WEIGHTS, weights))


def read(folder: str | Path) -> SAE:
    """The SAE in a SAELens folder, which gives the same reconstructions as there.

    What SAELens applies at inference is folded into the tensors: without `apply_b_dec_to_input`
    b_enc becomes b_enc + b_dec W_enc; with `rescale_acts_by_decoder_norm` each latent's decoder
    row is brought to norm 1 and its encoder multiplied by the norm, so codes are the same too.

    Raises:
        UserError: an architecture other than topk, normalised or reshaped activations, a version
            before 6, or files that are not as described; names file, key or tensor.
    """
    file = Path(folder) / CONFIG
    config = read_config(file)
    metadata = _metadata(file, config)
    if config.get("architecture") != "topk":
        raise UserError(
            f"{file} has architecture={config.get('architecture')!r}; only 'topk' can be read yet"
        )
    demand(file, config, normalize_activations="none", reshape_activations="none")
    d_in, d_sae, k = (whole_number(file, config, key) for key in ("d_in", "d_sae", "k"))
    if k > d_sae:
        raise UserError(f"{file} has k={k}, which exceeds d_sae={d_sae}")
    weights = Path(folder) / WEIGHTS
    tensors = read_tensors(
        weights,
        {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)},
    )
    W_enc, b_enc, W_dec, b_dec = (tensors[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec"))
    if not config.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ W_enc
    if config.get("rescale_acts_by_decoder_norm", False):
        norms = W_dec.norm(dim=1)
        if not norms.all():
            latent = int((norms == 0).nonzero()[0])
            raise UserError(f"{weights}: W_dec row {latent} is 0 and cannot be rescaled to norm 1")
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    own = metadata.pop(METADATA, None)
    if not isinstance(own, dict):
        theirs = {ours: metadata.get(key) for ours, key in NAMES.items()}
        own = {key: value for key, value in theirs.items() if value is not None}
        own["saelens"] = metadata
    return built(W_enc, b_enc, W_dec, b_dec, k=k, hook=metadata.get("hook_name"), metadata=own)


def _metadata(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    metadata = config.get("metadata")
    version = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    major = re.match(r"\d+", str(version))
    if major is None or int(major[0]) < OLDEST:
        raise UserError(
            f"{file} has metadata.sae_lens_version={version!r}; {OLDEST} or later can be read: "
            f"load it with SAELens {OLDEST} and save it again"
        )
    return dict(metadata)

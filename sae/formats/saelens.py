"""SAELens (version 6): `cfg.json` and `sae_weights.safetensors`, architecture `topk`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.formats.folder import (
    METADATA,
    read_config,
    read_int,
    read_tensors,
    require_values,
    write_folder,
)
from sae.formats.topk import require_topk, topk_sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# SAELens reads files below version 6, or without a version, as another, flat configuration.
OLDEST_VERSION = 6
WRITTEN_VERSION = "6.0.0"
# Our metadata key -> the key of SAELens.
METADATA_KEYS = {"model": "model_name", "hook": "hook_name", "context_size": "context_size"}


def write(sae: SAE, folder: str | Path) -> None:
    """Write a TopK SAE so that `sae_lens.SAE.load_from_disk(folder)` computes the same.

    Codes in SAELens are relu(top-k of (x - b_dec) W_enc + b_enc), as here, so the tensors are
    written unchanged. Metadata is written under the names that SAELens has for it, and all of it
    under `metadata.sae_workbench`, which SAELens carries along. Writing is atomic. `folder` must
    not exist, or hold only an SAE in this format, which is replaced.

    Raises:
        UserError: `sae` is not a TopK autoencoder, or `folder` holds other files.
    """
    rule = require_topk(sae, "saelens")
    hook = sae.site.hooks[0] if sae.site.hooks else None
    metadata = {"hook": hook, **sae.metadata}
    config = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "topk",
        "k": rule.k,
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": WRITTEN_VERSION,
            "sae_lens_training_version": None,  # otherwise SAELens fills in its own version
            **{key: metadata.get(ours) for ours, key in METADATA_KEYS.items()},
            METADATA: sae.metadata,
        },
    }
    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    write_folder(folder, (CONFIG, config), (WEIGHTS, weights))


def read(folder: str | Path) -> SAE:
    """Return the SAE in a SAELens folder, with the same codes and reconstructions.

    What SAELens applies at inference is folded into the tensors. Without `apply_b_dec_to_input`,
    b_enc becomes b_enc + b_dec W_enc. With `rescale_acts_by_decoder_norm`, each decoder row is
    divided by its norm, and the latent's encoder column and bias are multiplied by it.

    Raises:
        UserError: The architecture is not topk, activations are normalised or reshaped, the version
            is below 6, or the files are damaged. The message names the file and the key or tensor.
    """
    file = Path(folder) / CONFIG
    config = read_config(file)
    metadata = _metadata(file, config)
    if config.get("architecture") != "topk":
        raise UserError(
            f"{file} has architecture={config.get('architecture')!r}; only 'topk' can be read"
        )
    require_values(file, config, normalize_activations="none", reshape_activations="none")
    d_in, d_sae, k = (read_int(file, config, key) for key in ("d_in", "d_sae", "k"))
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
    # Our own metadata if this project wrote the folder, otherwise what SAELens has.
    ours = metadata.pop(METADATA, None)
    if not isinstance(ours, dict):
        ours = {
            key: metadata[theirs]
            for key, theirs in METADATA_KEYS.items()
            if metadata.get(theirs) is not None
        }
        ours["saelens"] = metadata
    return topk_sae(W_enc, b_enc, W_dec, b_dec, k=k, hook=metadata.get("hook_name"), metadata=ours)


def _metadata(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the metadata. Raises UserError if its SAELens version is too old."""
    metadata = config.get("metadata")
    version = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    major = re.match(r"\d+", str(version))
    if major is None or int(major[0]) < OLDEST_VERSION:
        raise UserError(
            f"{file} has metadata.sae_lens_version={version!r}; version {OLDEST_VERSION} is the "
            f"oldest that can be read; load the SAE with SAELens {OLDEST_VERSION} and save it again"
        )
    return dict(metadata or {})

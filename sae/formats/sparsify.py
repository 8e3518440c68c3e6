"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, activation `topk`."""

from __future__ import annotations

from pathlib import Path

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

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
# The defaults of sparsify, for keys that a file leaves out.
EXPANSION_FACTOR, K = 32, 32


def write(sae: SAE, folder: str | Path) -> None:
    """Write a TopK SAE so that `sparsify.SparseCoder.load_from_disk(folder)` computes the same.

    Codes in sparsify are the top-k of relu((x - b_dec) W_enc + b_enc), the same as here. Its
    encoder is an nn.Linear, so W_enc is written transposed. Our metadata is written under
    `sae_workbench`, which sparsify ignores. Writing is atomic. `folder` must not exist, or hold
    only an SAE in this format, which is replaced. Name the folder after the hook (`layers.3`),
    because sparsify reads the hook from it.

    Raises:
        UserError: `sae` is not a TopK autoencoder, or `folder` holds other files.
    """
    rule = require_topk(sae, "sparsify")
    config = {
        "activation": "topk",
        "expansion_factor": EXPANSION_FACTOR,  # ignored, because num_latents is given
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": rule.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_in,
        METADATA: sae.metadata,
    }
    weights = {
        "encoder.weight": sae.W_enc.t(),
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    write_folder(folder, (CONFIG, config), (WEIGHTS, weights))


def read(folder: str | Path) -> SAE:
    """Return the SAE in a sparsify folder, `<run>/<hook>`, with the same codes.

    `num_latents` 0 means d_in * expansion_factor. The hook is the name of the folder, or of its
    parent if the name starts with `seed`, unless the file holds our metadata.

    Raises:
        UserError: The SAE is a transcoder, has a skip connection or an activation other than topk,
            or the files are damaged. The message names the file and the key or tensor.
    """
    folder = Path(folder)
    file = folder / CONFIG
    # Older versions of sparsify did not write all keys.
    config = {"num_latents": 0, "expansion_factor": EXPANSION_FACTOR, "k": K, **read_config(file)}
    require_values(
        file, config, transcode=False, skip_connection=False, activation="topk", signed=False
    )
    d_in, k = (read_int(file, config, key) for key in ("d_in", "k"))
    d_sae = read_int(file, config, "num_latents", minimum=0)
    if d_sae == 0:
        d_sae = d_in * read_int(file, config, "expansion_factor")
    if k > d_sae:
        raise UserError(f"{file} has k={k}, which exceeds its {d_sae} latents")
    tensors = read_tensors(
        folder / WEIGHTS,
        {
            "encoder.weight": (d_sae, d_in),
            "encoder.bias": (d_sae,),
            "W_dec": (d_sae, d_in),
            "b_dec": (d_in,),
        },
    )
    metadata = config.get(METADATA)
    if not isinstance(metadata, dict):
        path = folder.absolute()
        metadata = {"hook": (path.parent if path.name.startswith("seed") else path).name}
    return topk_sae(
        tensors["encoder.weight"].t(),
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        k=k,
        hook=metadata.get("hook"),
        metadata=metadata,
    )

"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, activation `topk`."""

from __future__ import annotations

from pathlib import Path

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

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
EXPANSION, K = 32, 32  # sparsify's defaults for keys that a file leaves out


def write(sae: SAE, folder: str | Path) -> None:
    """Write a TopK SAE so that `sparsify.SparseCoder.load_from_disk(folder)` computes the same.

    Their codes are top-k of relu((x - b_dec) W_enc + b_enc), which are ours; their encoder is an
    nn.Linear, so W_enc goes transposed. Our metadata goes along under `sae_workbench`, which
    sparsify ignores. Written all or nothing; `folder` is new or holds nothing but an older such
    SAE. sparsify takes the folder's name for the hook (`layers.3`), so name it so.

    Raises:
        UserError: not a TopK autoencoder, or `folder` holds other files.
    """
    sparsity = checked_topk(sae, "sparsify")
    config = {
        "activation": "topk",
        "expansion_factor": EXPANSION,  # not looked at, because num_latents is given
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": sparsity.k,
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
    """The SAE in a sparsify folder, `<run>/<hook>`; the same codes and reconstructions as there.

    `num_latents` 0 stands for d_in * expansion_factor. The hook is the name of the folder, without
    a trailing `seed<n>`, unless the file holds our metadata.

    Raises:
        UserError: a transcoder, a skip connection, an activation other than topk, or files that are
            not as described; names file, key or tensor.
    """
    folder = Path(folder)
    file = folder / CONFIG
    # Keys that older versions did not write have sparsify's defaults.
    config = {"num_latents": 0, "expansion_factor": EXPANSION, "k": K, **read_config(file)}
    demand(file, config, transcode=False, skip_connection=False, activation="topk", signed=False)
    d_in, k = (whole_number(file, config, key) for key in ("d_in", "k"))
    d_sae = whole_number(file, config, "num_latents", least=0)
    if d_sae == 0:
        d_sae = d_in * whole_number(file, config, "expansion_factor")
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
    own = config.get(METADATA)
    if not isinstance(own, dict):
        at = folder.absolute()
        own = {"hook": (at.parent if at.name.startswith("seed") else at).name}
    return built(
        tensors["encoder.weight"].t(),
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        k=k,
        hook=own.get("hook"),
        metadata=own,
    )

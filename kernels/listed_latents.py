"""Code shared by the ops on a short list of latents: `aux_error` and `pre_act_loss`."""

from __future__ import annotations

from torch import Tensor

# On a CPU, 1 MB of fp32 for each of about ten [rows, n] tensors of a chunk: as fast as 4 MB, and
# 30 MB less memory. A GPU needs larger products.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
CHUNK_MIN_ROWS = 160


def chunk_rows(device_type: str, n_latents: int) -> int:
    """Return how many rows of the batch to process at once."""
    return max(CHUNK_ELEMENTS[device_type] // max(n_latents, 1), CHUNK_MIN_ROWS)


def scatter_rows(latents: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Return a tensor shaped like `like` that has rows[i] at latents[i] and is 0 elsewhere."""
    return rows.new_zeros(like.shape).index_copy_(0, latents, rows)

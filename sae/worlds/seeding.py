"""Seeds every random number of a world."""

from __future__ import annotations

import numpy as np
import torch

SPLITS: dict[str, int] = {"train": 0, "held_out": 1}


def generator_of(*key: int) -> torch.Generator:
    """Return a CPU generator for `key`.

    Different keys give independent streams, except that zeros at the end of a key are ignored:
    (1,) and (1, 0) are the same key.
    """
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))

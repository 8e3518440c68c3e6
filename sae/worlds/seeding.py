"""Where every random number of a world comes from."""

from __future__ import annotations

import numpy as np
import torch

SPLITS: dict[str, int] = {"train": 0, "held_out": 1}


def generator_of(*key: int) -> torch.Generator:
    """A CPU generator for `key`; different keys give unrelated streams, but for zeros at their end,
    which count for nothing: (1,) and (1, 0) are one key."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))

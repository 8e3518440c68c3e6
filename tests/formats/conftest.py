from __future__ import annotations

import pytest
import torch

from sae import SAE
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK


@pytest.fixture
def trained() -> SAE:
    """Return an SAE whose parameters all differ from their initial values, decoder norms too."""
    sae = SAE(
        12,
        TopK(d_sae=40, k=5),
        site=Autoencoder(hook="layers.3"),
        metadata={"model": "gpt2", "hook": "layers.3", "context_size": 128, "tokens": 1000},
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        sae.W_dec.mul_(torch.linspace(0.5, 3, 40)[:, None])
    return sae


@pytest.fixture
def x() -> torch.Tensor:
    """Return activations [64, 12]."""
    return 3 * torch.randn(64, 12, generator=torch.Generator().manual_seed(1)) + 0.5

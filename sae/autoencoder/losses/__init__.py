"""Terms of the loss. To add one: one file here, its test, one line below."""

from sae.autoencoder.losses.auxk import AuxK
from sae.autoencoder.losses.base import ForwardOutput, LossTerm, ModelPass, total_variance
from sae.autoencoder.losses.end_to_end import EndToEnd
from sae.autoencoder.losses.every_prefix import EveryPrefix
from sae.autoencoder.losses.fvu import FVU
from sae.autoencoder.losses.gate_reconstruction import GateReconstruction
from sae.autoencoder.losses.l0 import L0
from sae.autoencoder.losses.l1 import L1
from sae.autoencoder.losses.matryoshka import Matryoshka
from sae.autoencoder.losses.mse import MSE
from sae.autoencoder.losses.multi_k import MultiK
from sae.autoencoder.losses.penalty import Penalty
from sae.autoencoder.losses.pre_acts import PreActs

__all__ = [
    "FVU",
    "L0",
    "L1",
    "MSE",
    "AuxK",
    "EndToEnd",
    "EveryPrefix",
    "ForwardOutput",
    "GateReconstruction",
    "LossTerm",
    "Matryoshka",
    "ModelPass",
    "MultiK",
    "Penalty",
    "PreActs",
    "total_variance",
]

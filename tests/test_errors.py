"""UserError: settings named as a config has them on the command line, as arguments in Python."""

from __future__ import annotations

import pickle

import pytest

from sae.errors import UserError

NAMES = {
    "model.sae.k=9 exceeds model.sae.d_sae=8; lower k": "k=9 exceeds d_sae=8; lower k",
    "model.sae=TopKK is not known": "sae=TopKK is not known",
    "model.site.hook is not set": "hook is not set",
    "model.losses L1.p=3 must be 1": "L1.p=3 must be 1",
    "model.losses has a term": "losses has a term",
    "model.optim.lr=-1 must be positive": "lr=-1 must be positive",
    "model.cuda_graph=true needs a GPU": "cuda_graph=True needs a GPU",
    "data.source.context_size=1 is too small": "context_size=1 is too small",
    "data.source=World has none": "source=World has none",
    "data.batch_size=0; give at least 1": "batch_size=0; give at least 1",
    "trainer.max_steps=0": "steps=0",
    "choose another --name, or --overwrite it": "choose another name=, or pass overwrite=True",
    "go on with `--resume runs/x`, or stop": "go on with resume=True, or stop",
    "--resume runs/x: no config.yaml there": "resume=True: no config.yaml there",
    "/data/model.sae.pt is not a file": "/data/model.sae.pt is not a file",
    "sae.worlds.World is a class": "sae.worlds.World is a class",
}


@pytest.mark.parametrize("message", NAMES)
def test_python_shows_the_names_of_arguments(message):
    error = UserError(message)
    assert str(error) == NAMES[message] and error.message == message


def test_an_error_from_another_process_keeps_both_forms():
    error = pickle.loads(pickle.dumps(UserError("model.sae.k=0")))
    assert str(error) == "k=0" and error.message == "model.sae.k=0"

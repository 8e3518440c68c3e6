"""Wrong arguments of the Python API are refused in one line that names them, before any work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sae
from sae.activations import FileText
from sae.activations.tensors import TensorActivations
from sae.worlds import World

RULE = sae.TopK(d_sae=64, k=4)
SMALL = {
    "steps": 24,
    "batch_size": 64,
    "block_batches": 4,
    "held_out_tokens": 256,
    "accelerator": "cpu",
    "progress": False,
}
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
TWO_LAYERS = sae.CrossLayerTranscoder(read=("a", "b"), predict=("c", "d"))

# Name of the case -> arguments of `sae.train`, and how the message starts.
WRONG = {
    "nothing to train on": (
        {"activations": None},
        "train needs one of model=, source= and activations=; none of them is given",
    ),
    "two things to train on": (
        {"model": "gpt2"},
        "train needs one of model=, source= and activations=; model= and activations= are given",
    ),
    "no hooks": ({"activations": None, "model": "gpt2"}, "hooks= is missing; name modules"),
    "hooks of activations": ({"hooks": "a"}, "hooks= goes with model="),
    "hooks as a number": ({"hooks": 3}, "hooks=3 is an int; give a string or a list of strings"),
    "an unknown argument": ({"stepz": 3}, "sae.train has no argument stepz=; did you mean steps=?"),
    "a longer name": (
        {"learning_rate": 3},
        "sae.train has no argument learning_rate=; did you mean lr=?",
    ),
    "a name like no other": (
        {"zzz": 3},
        "sae.train has no argument zzz=; help(sae.train) lists them",
    ),
    # The rule
    "no rule": ({"sae": []}, "sae= is empty; give a sparsity rule such as"),
    "None as a rule": ({"sae": None}, "sae=None; give a sparsity rule such as"),
    "a class as a rule": (
        {"sae": sae.TopK},
        "sae=TopK is a class; give an object: a sparsity rule such as TopK(d_sae=4096, k=32), or "
        "a list or dict of rules",
    ),
    "a rule's name": ({"sae": "topk"}, "sae='topk' is a string; give a sparsity rule such as"),
    "a number among rules": ({"sae": [RULE, 3]}, "sae[1]=3 is an int; give a sparsity rule such"),
    "a member without a rule": ({"sae": {"a": {"lr": 1.0}}}, "sae['a'] has no sparsity rule; give"),
    "a member's rate as text": (
        {"sae": {"a": {"sae": RULE, "lr": "x"}, "b": RULE}},
        "sae['a']: lr='x' is a string; give a number",
    ),
    "a member's negative rate": (
        {"sae": {"a": {"sae": RULE, "lr": -1.0}, "b": RULE}},
        "sae['a']: lr=-1.0 must be a positive number",
    ),
    "a member's own batches": (
        {"sae": {"a": {"sae": RULE, "batch_size": 2}}},
        "sae['a'] has batch_size; members may differ in sae, lr, losses,",
    ),
    "a member that leaves the run": (
        {"sae": {"..": RULE, "b": RULE}},
        "members: '..' cannot be the name of a folder",
    ),
    "members that differ in case": (
        {"sae": {"a": RULE, "A": RULE}},
        "members: two names differ only in case",
    ),
    # Losses, site, optimizer
    "a loss term without a list": (
        {"losses": sae.FVU()},
        "losses=FVU(coefficient=1.0) is not in a list; give a list of loss terms, such as [FVU()]",
    ),
    "a loss term's name": ({"losses": "x"}, "losses='x' is a string; give a list of loss terms"),
    "a number among losses": ({"losses": [3]}, "losses[0]=3 is an int; give a loss term such as"),
    "a class among losses": (
        {"losses": [sae.FVU]},
        "losses[0]=FVU is a class; give an object: a loss term such as FVU()",
    ),
    "a rule as a site": ({"site": RULE}, "site=TopK(d_sae=64, k=4, k_start=None, k_anneal=0.0) is"),
    "an optimizer's name": ({"optim": "adam"}, "optim='adam' is a string; give an OptimConfig"),
    "sparse coding as a number": (
        {"sparse_coding": 5},
        "sparse_coding=5 is an int; give a SparseCoding, or None",
    ),
    "latents that layers cannot share": (
        {
            "sae": sae.TopK(d_sae=9, k=4),
            "site": TWO_LAYERS,
            "activations": dict.fromkeys("abcd", X),
        },
        "d_sae=9 is not a multiple of 2, but each of the 2 layers of the site has an equal share",
    ),
    # Numbers
    "no steps": ({"steps": 0}, "steps=0; give the length of the run in whole steps"),
    "half a step": ({"steps": 2.5}, "steps=2.5 is a float; give a whole number"),
    "steps as text": ({"steps": "5"}, "steps='5' is a string; give a whole number"),
    "steps as a bool": ({"steps": True}, "steps=True is a bool; give a whole number"),
    "no batch": ({"batch_size": 0}, "batch_size=0; give at least 1"),
    "batches as text": ({"batch_size": "a"}, "batch_size='a' is a string; give a whole number"),
    "negative lr": ({"lr": -1.0}, "lr=-1.0 must be a positive number"),
    "lr as text": ({"lr": "x"}, "lr='x' is a string; give a number, or None"),
    "lr as a bool": ({"lr": True}, "lr=True is a bool; give a number, or None"),
    "a tensor as lr": ({"lr": torch.ones(2)}, "lr=<Tensor of shape (2,)> is a Tensor; give a"),
    "seed as text": ({"seed": "a"}, "seed='a' is a string; give a whole number"),
    "dead_after as a float": ({"dead_after": 1.5}, "dead_after=1.5 is a float; give a whole"),
    "no accumulation": ({"accumulate": 0}, "accumulate=0; give at least 1"),
    "no steps per call": ({"steps_per_call": 0}, "steps_per_call=0; give a whole number of at"),
    "no row of metrics": ({"log_every": 0}, "log_every=0; give a whole number of at least 1"),
    "one held-out row": ({"held_out_tokens": 1}, "held_out_tokens=1: FVU divides by the variance"),
    # Choices and flags
    "an unknown dtype": (
        {"dtype": "float17"},
        "dtype='float17' is not known; give 'float32' or 'bfloat16'",
    ),
    "no such accelerator": ({"accelerator": "gpuu"}, "accelerator='gpuu' is not one of"),
    "two devices": ({"devices": 2}, "devices=2; a run uses one device"),
    "devices as text": ({"devices": "a"}, "devices='a' is a string; give 1, or the number of a"),
    "the number of a GPU on the CPU": ({"devices": [0]}, "devices=[0] is the number of a GPU, but"),
    "unknown profiler": ({"profiler": "x"}, "profiler='x' is not"),
    "a flag as text": ({"cuda_graph": "yes"}, "cuda_graph='yes' is a string; give True or False"),
    "a callback without a list": ({"callbacks": 3}, "callbacks=3 is an int; give a list of"),
    "a number among callbacks": ({"callbacks": [3]}, "callbacks[0]=3 is an int; give a Callback"),
    "a logger's name": ({"logger": "csv"}, "logger='csv' is a string; give a Logger"),
    # The folder
    "resume and overwrite": (
        {"resume": True, "overwrite": True, "name": "a"},
        "resume=True continues a run and overwrite=True replaces it; leave one of them out",
    ),
    "an empty name": ({"name": ""}, "name='' is not the name of a folder"),
    "a number as a name": ({"name": 3}, "name=3 is an int; give a string, or None"),
    "the parent folder": ({"name": ".."}, "name='..' is not the name of a folder"),
    "a long name": ({"name": "a" * 300}, "name='aaaaaaaaaaaaaaaaaaaa'... has 300 characters"),
    "a path as a name": ({"name": "a/b"}, "name='a/b' is not the name of a folder"),
    "a name like a setting": ({"name": "model.sae.k/"}, "name='model.sae.k/' is not the name"),
    "runs as a number": ({"runs": 3}, "runs=3 is an int; give a string or a path"),
    # Activations
    "a model's name as a source": ({"source": "gpt2"}, "source='gpt2' is a string; give a Source"),
    "text as activations": ({"activations": "x"}, "activations='x' is a string; give a tensor"),
    "a number as activations": ({"activations": 5}, "activations=5 is an int; give a tensor"),
    "a number by hook": ({"activations": {"a": 3}}, "activations['a']=3 is an int; give a Tensor"),
    "activations without a hook": ({"activations": {}}, "activations={} has no hook; give a"),
    "integers": (
        {"activations": X.int()},
        "activations has shape [40, 3] and dtype torch.int32; give floating-point numbers [rows,",
    ),
    "one dimension": ({"activations": torch.ones(9)}, "activations has shape [9] and dtype"),
    "numbers of one hook": (
        {"activations": {"a": X, "b": X.int()}},
        "activations['b'] has shape [40, 3] and dtype torch.int32",
    ),
    "strings in an array": (
        {"activations": np.array(["a"])},
        "activations=<ndarray of shape (1,)> is not a tensor",
    ),
    "two rows": ({"activations": X[:2]}, "activations has 2 rows; give at least 3"),
    "one row to hold out": (
        {"activations": X[:29]},
        "activations has 29 rows, and held_out_fraction=0.05 of them is 1 row, but FVU divides by "
        "the variance of the held-out rows; give at least 32 rows, or "
        "source=TensorActivations(x, held_out_fraction=0.07)",
    ),
    "not finite": (
        {"activations": torch.full((40, 3), torch.nan)},
        "activations has 40 rows in activations that are NaN or infinite; remove them",
    ),
    "unlike rows": (
        {"activations": {"a": X, "b": X[1:]}},
        "activations differ in their number of rows: a 40, b 39",
    ),
}


def refused(call, *args, **kwargs) -> str:
    """Return the message of the UserError that a call raises."""
    with pytest.raises(sae.UserError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def in_tmp_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", WRONG)
def test_train_refuses_a_wrong_argument_by_its_name_in_python(case, tmp_path):
    arguments, start = WRONG[case]
    message = refused(sae.train, **{"activations": X, "sae": RULE, **SMALL, **arguments})
    assert message.startswith(start)
    assert "--" not in message
    assert not list(tmp_path.iterdir()), "a refused call leaves nothing"


def test_train_refuses_arguments_without_names_and_missing_ones():
    assert "give arguments by name, such as sae=" in refused(sae.train, X)
    assert refused(sae.train, activations=X, sae=RULE) == "steps is missing; sae.train needs it"


@pytest.mark.parametrize(
    ("activations", "start"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], "activations item has shape [2] and dtype torch.float32"),
        (["a"], "activations item='a' is not a tensor"),
        (lambda: 3, "activations is a function that returned 3; let it return an iterable"),
        (torch.ones(400, 3), "all rows of the first block of activations are the same, so FVU"),
        (torch.zeros(400, 3), "the activations of the first block are all zero"),
    ],
    ids=["numbers", "text", "no iterable", "constant", "zero"],
)
def test_train_refuses_activations_that_hold_nothing_to_learn(activations, start):
    message = refused(sae.train, activations=activations, sae=RULE, **SMALL)
    assert message.startswith(start)


# Name of the case -> a constructor, its arguments, and how the message starts.
WRONG_SETTINGS = {
    "k as text": (sae.TopK, {"d_sae": 8, "k": "4"}, "k='4' is a string; give a whole number"),
    "k as a fraction": (sae.TopK, {"d_sae": 8, "k": 1.5}, "k=1.5 is a float; give a whole number"),
    "k as a bool": (sae.TopK, {"d_sae": 8, "k": True}, "k=True is a bool; give a whole number"),
    "d_sae as a float": (sae.TopK, {"d_sae": 32.0, "k": 4}, "d_sae=32.0 is a float; give a whole"),
    "None as d_sae": (sae.TopK, {"d_sae": None, "k": 4}, "d_sae=None; give a whole number"),
    "k above d_sae": (sae.TopK, {"d_sae": 8, "k": 9}, "k=9 exceeds d_sae=8; lower k or raise"),
    "no latents": (sae.ReLU, {"d_sae": 0}, "d_sae=0; give at least 1 latent"),
    "a threshold as text": (sae.JumpReLU, {"d_sae": 8, "threshold": "x"}, "threshold='x' is a str"),
    "a flag as a number": (sae.Unrolled, {"d_sae": 8, "tied": 1}, "tied=1 is an int; give True or"),
    "a coefficient as text": (sae.L1, {"coefficient": "x"}, "L1.coefficient='x' is a string; give"),
    "a kind of loss": (sae.EndToEnd, {"kind": "js"}, "EndToEnd.kind='js' is not known; give 'kl'"),
    "one prefix": (sae.Matryoshka, {"prefixes": 3}, "Matryoshka.prefixes=3 is not in a list; give"),
    "a prefix as text": (
        sae.Matryoshka,
        {"prefixes": [1, "a"]},
        "Matryoshka.prefixes[1]='a' is a string; give a whole number",
    ),
    "a hook as a number": (sae.Transcoder, {"read": 3, "predict": "a"}, "read=3 is an int; give a"),
    "hooks as one string": (
        sae.Crosscoder,
        {"read": "a"},
        "read='a' is not in a list; give a",
    ),
    "an optimizer": (
        sae.OptimConfig,
        {"name": "sgd"},
        "optim.name='sgd' is not known; give",
    ),
    "betas as a number": (
        sae.OptimConfig,
        {"betas": 0.9},
        "optim.betas=0.9 is a float; give 2",
    ),
    "one beta": (sae.OptimConfig, {"betas": [0.9]}, "optim.betas=[0.9] is a list; give 2 numbers"),
    "a rate as text": (sae.OptimConfig, {"lr": "x"}, "lr='x' is a string; give a number, or None"),
    "a share as text": (
        sae.SparseCoding,
        {"share": "x"},
        "sparse_coding.share='x' is a string; give a number",
    ),
    "a width as text": (World, {"d_in": "x"}, "d_in='x' is a string; give a whole number"),
    "a misspelt width": (World, {"d_inn": 3}, "World has no argument d_inn=; did you mean d_in=?"),
    "one hook of a model": (
        sae.ModelActivations,
        {"model": "gpt2", "hooks": "layers.3", "text": sae.BuiltinText()},
        "hooks='layers.3' is not in a list; give a list of strings",
    ),
    "paths as a number": (FileText, {"paths": 3}, "paths=3 is an int; give a list of strings"),
    "a share to hold out": (
        TensorActivations,
        {"activations": X, "held_out_fraction": "x"},
        "held_out_fraction='x' is a string; give a number",
    ),
    "a width of an SAE": (sae.SAE, {"d_in": 3.0, "sparsity": RULE}, "d_in=3.0 is a float; give"),
    "a class of rule": (
        sae.SAE,
        {"d_in": 3, "sparsity": sae.TopK},
        "sparsity=TopK is a class",
    ),
    "rates above 1": (sae.OptimConfig, {"betas": (2, 3)}, "optim.betas=(2, 3) are decay rates"),
    "no hook": (sae.Crosscoder, {"read": []}, "read=[] names no hook, or one twice; give each"),
    "a hook twice": (sae.Crosscoder, {"read": ["a", "a"]}, "read=['a', 'a'] names no hook, or one"),
    "no width": (sae.SAE, {"d_in": 0, "sparsity": RULE}, "d_in=0; give at least 1"),
    "a dtype as text": (
        sae.SAE,
        {"d_in": 3, "sparsity": RULE, "dtype": "float32"},
        "dtype='float32' is a string; give a dtype such as torch.float32",
    ),
    "a dtype of integers": (
        sae.SAE,
        {"d_in": 3, "sparsity": RULE, "dtype": torch.int32},
        "dtype=torch.int32 has no fractions; give one such as torch.float32",
    ),
    "a folder": (sae.Run, {"folder": 3}, "folder=3 is an int; give a string or a path"),
    "a folder of an SAE": (
        sae.SAE.load,
        {"folder": X},
        "folder=<Tensor of shape (40, 3)> is",
    ),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_constructors_refuse_wrong_settings(case):
    make, settings, start = WRONG_SETTINGS[case]
    assert refused(make, **settings).startswith(start)


def test_numbers_of_numpy_and_lists_are_taken_as_those_of_python():
    rule = sae.TopK(d_sae=np.int64(8), k=np.int32(2))
    assert type(rule.d_sae) is int and type(rule.k) is int and rule == sae.TopK(d_sae=8, k=2)
    assert sae.OptimConfig(lr=1, betas=[0.5, 0.9]).betas == (0.5, 0.9)
    assert type(sae.OptimConfig(lr=np.float32(0.5)).lr) is float
    assert sae.Crosscoder(read=["a", "b"]).read == ("a", "b")
    world = World(d_in=np.int64(4), n_features=8)
    assert world.widths == {"world": 4}


def test_train_accepts_counts_of_numpy():
    settings = {**SMALL, "steps": np.int64(2), "seed": np.int64(1), "lr": np.float64(1e-3)}
    run = sae.train(activations=X.numpy(), sae=sae.TopK(d_sae=8, k=np.int64(2)), **settings)
    assert run.metrics["steps"] == 2 and run.metrics["positions"] is None


@pytest.fixture(scope="module")
def autoencoder() -> sae.SAE:
    return sae.SAE(3, sae.TopK(d_sae=8, k=2))


NO_TENSORS = {
    "numpy": (X.numpy(), "=<ndarray of shape (40, 3)> is not a tensor; convert it with torch."),
    "list": ([[1.0, 2.0, 3.0]], "=[[1.0, 2.0, 3.0]] is not a tensor; give a tensor [..., d_"),
    "text": ("a", "='a' is not a tensor; give a tensor [..., d_"),
    "integers": (X.long(), " has dtype torch.int64; give floating-point numbers [..., d_"),
}


@pytest.mark.parametrize("kind", NO_TENSORS)
def test_an_sae_refuses_what_is_no_tensor_of_floats(kind, autoencoder):
    value, message = NO_TENSORS[kind]
    for call in (autoencoder, autoencoder.encode, autoencoder.encode_training):
        assert refused(call, value).startswith(f"x{message}")
    assert refused(autoencoder.decode, value).startswith(f"codes{message}")


def test_an_sae_refuses_another_width_with_the_width_it_has(autoencoder):
    message = "x has shape (40, 4), but this SAE reads [..., d_in] with d_in=3"
    for call in (autoencoder, autoencoder.encode, autoencoder.encode_training):
        assert refused(call, torch.ones(40, 4)) == message
    assert "x has shape ()" in refused(autoencoder.encode, torch.tensor(1.0))
    message = refused(autoencoder.decode, torch.ones(40, 3))
    assert message.startswith("codes has shape (40, 3), but this SAE decodes [..., d_sae] with d_s")
    others = sae.SAE(3, sae.TopK(d_sae=16, k=2)).encode(X)
    assert refused(autoencoder.decode, others).startswith("codes are of 16 latents, but this SAE")


def test_load_refuses_a_folder_without_an_sae_and_a_device_that_does_not_exist(tmp_path):
    assert "does not exist; give a folder that SAE.save wrote" in refused(sae.SAE.load, tmp_path)
    message = refused(sae.SAE.load, tmp_path, device="gpuu")
    assert message.startswith("device='gpuu' is not on this machine; give 'cpu'")


def test_load_names_the_argument_that_goes_by_name(tmp_path):
    message = refused(sae.SAE.load, tmp_path, "cpu")
    assert (
        message
        == "SAE.load: too many positional arguments; give arguments by name, such as device="
    )


def test_refine_must_be_a_whole_number(autoencoder):
    assert (
        refused(autoencoder.encode, X, refine=1.5) == "refine=1.5 is a float; give a whole number"
    )

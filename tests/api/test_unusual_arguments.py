"""Arguments that a user may well pass to the Python API are taken, and odd ones refused early."""

import dataclasses
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sae
from sae.activations import Batch, FileText, Source
from sae.activations.tensors import IterableActivations, TensorActivations
from sae.autoencoder.sparsity import Sparsity

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


def refused(call, *args, **kwargs) -> str:
    """Return the message of the UserError that a call raises."""
    with pytest.raises(sae.UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def in_tmp_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_tensors_and_arrays_of_any_layout_and_float_type_are_taken():
    expected = TensorActivations(X).activations["activations"]
    reversed_rows = np.ascontiguousarray(X.numpy()[::-1])[::-1]
    with torch.inference_mode():
        inference = X.clone()
    for same in (
        X.t().contiguous().t(),
        X.double(),
        torch.nn.Parameter(X),
        X.view(8, 5, 3),
        inference,
        reversed_rows,
        X.numpy().astype(">f4"),
        np.asfortranarray(X.numpy()),
    ):
        assert torch.equal(TensorActivations(same).activations["activations"], expected)
    assert TensorActivations(X.half()).activation_dtype == torch.float16


@pytest.mark.parametrize(
    "activations",
    [X.to_sparse(), X.to("meta"), X[:, :0], X.to(torch.float8_e4m3fn)],
    ids=["sparse", "meta", "no width", "float8"],
)
def test_tensors_that_cannot_be_trained_on_are_refused(activations):
    assert refused(TensorActivations, activations).startswith("activations ")


def test_a_data_loader_of_a_tensor_dataset_and_an_iterable_class_are_taken():
    class Rows:
        def __iter__(self):
            return iter([X, X])

        def __call__(self):
            raise AssertionError("an iterable is iterated over, not called")

    loader = DataLoader(TensorDataset(X), batch_size=8)
    for activations in (loader, Rows, Rows()):
        source = IterableActivations(activations, held_out_tokens=4)
        assert torch.equal(source.block("train", 0, 4, 0).acts["activations"], X[4:8])


def test_paths_are_taken_as_strings():
    assert FileText([Path("a"), "b"]).paths == ["a", "b"]
    assert FileText(Path("a")).paths == ["a"]
    assert sae.ModelActivations(Path("m"), ("a",), sae.BuiltinText()).model_name == "m"


def test_train_takes_a_dtype_of_torch_and_no_callbacks():
    for dtype in (torch.bfloat16, torch.float16):
        arguments = {**SMALL, "steps": 2, "dtype": dtype, "callbacks": None}
        if dtype == torch.float16:
            assert refused(sae.train, activations=X, sae=RULE, **arguments).startswith(
                "dtype='float16' is not known; give 'float32' or 'bfloat16'"
            )
            continue
        run = sae.train(activations=X, sae=RULE, **arguments)
        members = {"a": {"sae": RULE, "dtype": dtype}}
        (member,) = sae.train(activations=X, sae=members, **{**arguments, "dtype": "float32"})
        assert run.sae.W_enc.dtype == member.sae.W_enc.dtype == dtype


class Wandering(Source):
    """A source with variable arguments, and metadata of numpy numbers and paths."""

    widths = {"x": 3}

    def __init__(self, *sizes: int, noise: float = 0.1, **named: int) -> None:
        self.extra = {}

    def block(self, split: str, index: int, size: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(index + (split == "train") * 1000)
        return Batch({"x": torch.randn(size, 3, generator=generator)})

    def metadata(self):
        return {"width": np.int64(3), "path": Path("a"), **self.extra}


def test_a_source_may_have_variable_arguments():
    assert Wandering(1, np.int64(2), a=3).init_args()["sizes"] == (1, 2)
    assert refused(Wandering, 1, "b") == "sizes[1]='b' is a string; give a whole number"
    assert refused(Wandering, a="b") == "a='b' is a string; give a whole number"


def test_metadata_is_saved_as_json_or_refused_before_training(tmp_path):
    source = Wandering()
    metadata = sae.train(source=source, sae=RULE, **{**SMALL, "steps": 2}).sae.metadata
    assert (metadata["width"], metadata["path"]) == (3, "a")
    source.extra = {"model": len}
    before = sorted(tmp_path.rglob("*"))
    assert refused(sae.train, source=source, sae=RULE, **SMALL).startswith(
        "the metadata of source cannot be saved: it has an object of type builtin_function"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_hook_leaves_no_folder(tmp_path):
    message = refused(sae.train, activations={"a": X, "b": X}, sae=RULE, **SMALL)
    assert message.startswith("hook is not set, and several hooks are harvested: a, b")
    assert not list(tmp_path.iterdir())


def rule_with(annotation, *defaults):
    """Return a class of rule that has a field `value` of a type."""
    return dataclasses.make_dataclass(
        "Local",
        [("d_sae", int), ("value", annotation, *defaults)],
        bases=(sae.TopK,),
        kw_only=True,
        frozen=True,
    )


@pytest.fixture(autouse=True)
def registry_without_the_rules_of_tests(monkeypatch):
    monkeypatch.setattr(Sparsity, "registry", dict(Sparsity.registry))


TYPES = {
    "a class as Callable": (Callable[..., Any], torch.nn.ReLU),
    "a function": (Callable[[torch.Tensor], torch.Tensor], torch.relu),
    "Final": (Final[int], 3),
    "Counter": (Counter[str], Counter("ab")),
    "a bare List": (typing.List, [1]),  # noqa: UP006
    "an unknown name": ("Nowhere", 3),
    "no expression": ("some numbers", 3),
    "a scalar of numpy": (np.float32, np.float32(1)),
    "a scalar of numpy or None": (np.float32 | None, np.float32(1)),
    "a complex number": (complex, 1.0),
}


@pytest.mark.parametrize("case", TYPES)
def test_a_rule_of_the_user_may_have_a_field_of_any_type(case):
    annotation, value = TYPES[case]
    assert rule_with(annotation)(d_sae=8, k=2, value=value).value is value


def test_an_unset_field_and_slots_are_checked_as_far_as_they_are_set():
    unset = rule_with(int, field(init=False))(d_sae=np.int64(8), k=2)
    assert type(unset.d_sae) is int
    assert rule_with(int, field(init=False, default=3))(d_sae=8, k=2).value == 3
    slots = dataclass(frozen=True, kw_only=True, slots=True)(
        type("Slots", (sae.AbsTopK,), {"__annotations__": {"extra": int}, "extra": 3})
    )
    assert refused(slots, d_sae=8, k=2, extra="a").startswith("extra='a' is a string")


@pytest.mark.parametrize(
    ("annotation", "wanted"),
    [
        (typing.List, "a list"),  # noqa: UP006
        (typing.Dict, "a dict"),  # noqa: UP006
        (tuple[()], "a list"),
        (Callable[[], int], "a function"),
    ],
)
def test_a_wrong_value_of_a_bare_container_is_refused_in_one_line(annotation, wanted):
    message = refused(rule_with(annotation), d_sae=8, k=2, value=3)
    assert message == f"value=3 is an int; give {wanted}"


def test_a_rule_that_cannot_be_saved_is_refused_before_training(tmp_path):
    rule = rule_with(Callable[..., Any])(d_sae=8, k=2, value=len)
    message = refused(sae.train, activations=X, sae=rule, **SMALL)
    assert message.startswith("sae=Local cannot be saved: it has an object of type builtin_func")
    assert not list(tmp_path.iterdir())


def test_values_with_an_odd_shape_or_repr_are_shown():
    class Odd:
        shape = len

        def __repr__(self) -> str:
            raise ValueError

    message = refused(sae.TopK, d_sae=Odd(), k=2)
    assert message == "d_sae=<Odd> is an Odd; give a whole number"


def test_losses_without_a_gradient_are_refused():
    message = refused(sae.train, activations=X, sae=RULE, losses=[sae.AuxK()], **SMALL)
    assert message == "losses=AuxK gives no gradient to learn from; add FVU or MSE"

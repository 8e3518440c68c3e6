"""Hook names in every model family, and errors for wrong names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from sae.activations import ActivationModel
from sae.activations.hooks import attach, resolve
from sae.errors import UserError
from tiny_models import FAMILIES, LAYERS

PARTS = {
    "bert": ("attention", "output.dense"),
    "gpt2": ("attn", "mlp"),
    "llama": ("self_attn", "mlp"),
    "neox": ("attention", "mlp"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_short_hook_names_resolve_in_every_family(folders: dict[str, Path], family: str) -> None:
    attention, mlp = PARTS[family]
    hooks = ["layers.0", "layers.1.attention", "layers.1.mlp", f"{LAYERS[family]}.2"]
    model = ActivationModel.load(str(folders[family]), hooks)
    layers = LAYERS[family]
    expected = [f"{layers}.0", f"{layers}.1.{attention}", f"{layers}.1.{mlp}", f"{layers}.2"]
    assert list(model.modules.values()) == expected
    assert model.widths == dict.fromkeys(hooks, 16)


def test_unique_suffix_of_a_full_name_resolves(folders: dict[str, Path]) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(folders["gpt2"])
    assert resolve(model, "h.2") == "transformer.h.2"
    assert resolve(model, "2.mlp.c_fc") == "transformer.h.2.mlp.c_fc"
    assert resolve(model, "layers.2.mlp.c_fc") == "transformer.h.2.mlp.c_fc"


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (
            "layers.7",
            r"'layers\.7' matches no module; it has layers\.0 to layers\.2 \(encoder\.layer\.N\)",
        ),
        ("encoder.layers.1", r"matches no module; it has .*encoder\.layer\.1"),
        ("layers.1.atention", r"matches no module; it has .*encoder\.layer\.1\.attention"),
        ("LayerNorm", r"'LayerNorm' matches 7 modules: embeddings\.LayerNorm, .*give a full name"),
    ],
    ids=["beyond", "stack", "typo", "several"],
)
def test_unknown_hook_error_lists_similar_names(
    folders: dict[str, Path], hook: str, message: str
) -> None:
    model = transformers.BertModel.from_pretrained(folders["bert"])
    with pytest.raises(UserError, match=message) as error:
        resolve(model, hook)
    assert "\n" not in str(error.value)


def test_layers_n_needs_exactly_one_stack() -> None:
    model = nn.ModuleDict({"a": nn.ModuleList([nn.ReLU()]), "b": nn.ModuleList([nn.ReLU()])})
    with pytest.raises(UserError, match="matches no module"):
        resolve(model, "layers.0")


def test_nested_module_lists_are_not_stacks() -> None:
    layer = lambda: nn.ModuleDict({"experts": nn.ModuleList([nn.ReLU() for _ in range(8)])})
    model = nn.ModuleDict({"blocks": nn.ModuleList([layer(), layer()])})
    assert resolve(model, "layers.1") == "blocks.1"
    assert resolve(model, "layers.1.experts.7") == "blocks.1.experts.7"


INPUTS = {
    "bert": ("attention", "intermediate.dense"),
    "gpt2": ("attn", "mlp"),
    "llama": ("self_attn", "mlp"),
    "neox": ("attention", "mlp"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_module_inputs_are_read_and_replaced_in_every_family(
    folders: dict[str, Path], family: str
) -> None:
    """An input hook reads and replaces a module's input, given by position or by name."""
    layer, (attention, mlp) = LAYERS[family], INPUTS[family]
    hooks = ["layers.1.attention.in", "layers.1.mlp.in", f"{layer}.2.in", "layers.1"]
    model = ActivationModel.load(str(folders[family]), hooks)
    full = [f"{layer}.1.{attention}", f"{layer}.1.{mlp}", f"{layer}.2"]
    assert list(model.modules.values()) == [*(name + ".in" for name in full), f"{layer}.1"]
    assert model.widths == dict.fromkeys(hooks, 16)

    seen = {}

    def watch(name):
        module = model.model.get_submodule(name)
        inner = module.forward

        def forward(*args, **kwargs):
            seen[name] = args[0] if args else kwargs["hidden_states"]
            return inner(*args, **kwargs)

        module.forward = forward

    for name in full:
        watch(name)
    tokens = torch.randint(8, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    acts = model.activations(tokens)
    clean = model.outputs(tokens).hidden
    for hook, name in zip(hooks, full, strict=False):
        torch.testing.assert_close(acts[hook], seen[name], rtol=0, atol=0)
    torch.testing.assert_close(acts[f"{layer}.2.in"], acts["layers.1"], rtol=0, atol=0)
    for hook, name in zip(hooks, full, strict=False):
        put = torch.full_like(acts[hook], 0.25)
        patched = model.outputs(tokens, replace={hook: lambda x: x.new_full(x.shape, 0.25)}).hidden
        torch.testing.assert_close(seen[name], put, rtol=0, atol=0)
        assert (patched - clean).abs().max() > 1e-4, hook


def test_forward_pass_stops_at_the_last_input_hook(folders: dict[str, Path]) -> None:
    model = ActivationModel.load(str(folders["gpt2"]), ["layers.1.mlp.in"])
    ran = []
    for name, module in model.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.activations(torch.tensor([[8, 9, 10]]))
    assert "transformer.h.1.ln_2" in ran and "transformer.h.1.mlp.c_fc" not in ran


def test_module_named_in_is_not_an_input_suffix() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"in": nn.ReLU(), "out": nn.ReLU()})})
    assert resolve(model, "a.in") == "a.in"
    assert resolve(model, "out.in") == "a.out.in"
    got = []
    attach(model, "a.in", got.append)
    model["a"]["in"](torch.tensor(-2.0))
    assert got == [torch.tensor(0.0)]
    with pytest.raises(UserError, match=r"hooks='b' matches no module"):
        resolve(model, "b.in")


def test_call_concatenates_several_hooks(folders: dict[str, Path]) -> None:
    hooks = ["layers.1.mlp.in", "layers.0"]
    both = ActivationModel.load(str(folders["llama"]), hooks)("w3 w4 w5")
    each = [ActivationModel.load(folders["llama"], hook)("w3 w4 w5") for hook in hooks]
    torch.testing.assert_close(both, torch.cat(each, dim=1), rtol=0, atol=0)
    assert both.shape == (3, 32)

"""Names of hooks fit every family, and a wrong one is answered with what exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from torch import nn

from sae.activations import ActivationModel
from sae.activations.hooks import resolve
from sae.errors import UserError
from tiny_models import FAMILIES, LAYERS

PARTS = {
    "bert": ("attention", "output.dense"),
    "gpt2": ("attn", "mlp"),
    "llama": ("self_attn", "mlp"),
    "neox": ("attention", "mlp"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_short_forms_in_every_family(folders: dict[str, Path], family: str) -> None:
    attention, mlp = PARTS[family]
    hooks = ["layers.0", "layers.1.attention", "layers.1.mlp", f"{LAYERS[family]}.2"]
    model = ActivationModel.load(str(folders[family]), hooks)
    layers = LAYERS[family]
    wanted = [f"{layers}.0", f"{layers}.1.{attention}", f"{layers}.1.{mlp}", f"{layers}.2"]
    assert list(model.modules.values()) == wanted
    assert model.widths == dict.fromkeys(hooks, 16)


def test_the_end_of_a_full_name_is_enough(folders: dict[str, Path]) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(folders["gpt2"])
    assert resolve(model, "h.2") == "transformer.h.2"
    assert resolve(model, "2.mlp.c_fc") == "transformer.h.2.mlp.c_fc"
    assert resolve(model, "layers.2.mlp.c_fc") == "transformer.h.2.mlp.c_fc"


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (
            "layers.7",
            r"'layers\.7' matches no module; it has layers\.0 to layers\.2 \(encoder\.layer\.N\)",
        ),
        ("encoder.layers.1", r"matches no module; it has .*encoder\.layer\.1"),
        ("layers.1.atention", r"matches no module; it has .*encoder\.layer\.1\.attention"),
        ("LayerNorm", r"'LayerNorm' matches 7 modules: embeddings\.LayerNorm, .*give one in full"),
    ],
    ids=["beyond", "stack", "typo", "several"],
)
def test_a_wrong_name_is_answered_with_near_ones(
    folders: dict[str, Path], hook: str, says: str
) -> None:
    model = transformers.BertModel.from_pretrained(folders["bert"])
    with pytest.raises(UserError, match=says) as error:
        resolve(model, hook)
    assert "\n" not in str(error.value)


def test_two_stacks_are_no_short_form() -> None:
    model = nn.ModuleDict({"a": nn.ModuleList([nn.ReLU()]), "b": nn.ModuleList([nn.ReLU()])})
    with pytest.raises(UserError, match="matches no module"):
        resolve(model, "layers.0")


def test_lists_inside_a_layer_are_no_stack() -> None:
    layer = lambda: nn.ModuleDict({"experts": nn.ModuleList([nn.ReLU() for _ in range(8)])})
    model = nn.ModuleDict({"blocks": nn.ModuleList([layer(), layer()])})
    assert resolve(model, "layers.1") == "blocks.1"
    assert resolve(model, "layers.1.experts.7") == "blocks.1.experts.7"

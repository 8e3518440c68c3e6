"""Tiny random models of four families and a tokenizer of fifty words, saved as real folders."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sae.activations import FileText, ModelActivations, loading

transformers = pytest.importorskip("transformers")

FAMILIES = ("bert", "gpt2", "llama", "neox")
WORDS = [f"w{i}" for i in range(50)]
LAYERS = {"bert": "encoder.layer", "gpt2": "transformer.h", "llama": "model.layers"}
LAYERS["neox"] = "gpt_neox.layers"


def tiny_config(family: str) -> transformers.PretrainedConfig:
    sizes = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    if family == "bert":
        return transformers.BertConfig(**sizes)
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=60, n_embd=16, n_layer=3, n_head=2, n_inner=32, n_positions=64
        )
    if family == "llama":
        return transformers.LlamaConfig(**sizes)
    return transformers.GPTNeoXConfig(**sizes)


def tiny_tokenizer(family: str) -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {
        "bert": {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "unk": "[UNK]"},
        "gpt2": {"bos": "<|end|>", "eos": "<|end|>", "unk": "<|end|>"},
        "llama": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        "neox": {"eos": "<|end|>", "unk": "<unk>"},
    }[family]
    words = [*dict.fromkeys(special.values()), *WORDS]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=special["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = {"bert": "[CLS] $A [SEP]", "llama": "<s> $A"}.get(family)
    if around:
        used = [word for word in around.split() if word != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=[(word, ids[word]) for word in used]
        )
    named = {f"{name}_token": word for name, word in special.items()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **named
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of a saved tiny model with its tokenizer."""
    classes = {
        "bert": transformers.BertModel,
        "gpt2": transformers.GPT2LMHeadModel,
        "llama": transformers.LlamaForCausalLM,
        "neox": transformers.GPTNeoXForCausalLM,
    }
    saved = {}
    for family, make in classes.items():
        torch.manual_seed(0)
        saved[family] = tmp_path_factory.mktemp(family)
        make(tiny_config(family)).save_pretrained(saved[family])
        tiny_tokenizer(family).save_pretrained(saved[family])
    return saved


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being split, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_documents(n: int, seed: int = 0, longest: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(n)]


@pytest.fixture
def text(tmp_path: Path) -> FileText:
    """43 documents of 1 to 60 words."""
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(some_documents(43)))
    return FileText([str(tmp_path / "text.txt")])


@pytest.fixture(scope="session")
def load_once() -> Callable[..., tuple]:
    """Loads each model once: sources leave nothing behind in it."""
    return functools.cache(loading.load)


@pytest.fixture
def make_source(
    folders: dict[str, Path], text: FileText, load_once, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ModelActivations]:
    """make_source(family, **settings): a source that is set up, on the 43 documents."""
    monkeypatch.setattr("sae.activations.model.load", load_once)

    def make(family: str = "bert", setup: bool = True, **settings) -> ModelActivations:
        settings = {"hooks": ["layers.1"], "text": text, "context_size": 16, **settings}
        settings = {"model_batch_size": 64, "held_out_every": 5, **settings}
        settings = {"model": str(folders[family]), **settings}
        source = ModelActivations(**settings)
        if setup:
            source.setup()
        return source

    return make

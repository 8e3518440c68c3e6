"""Tiny random models of four families and a tokenizer of fifty words, saved as real folders."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import transformers

from sae.activations import Batch

FAMILIES = ("bert", "gpt2", "llama", "neox")
WORDS = [f"w{i}" for i in range(50)]
LAYERS = {
    "bert": "encoder.layer",
    "gpt2": "transformer.h",
    "llama": "model.layers",
    "neox": "gpt_neox.layers",
}
CLASSES = {
    "bert": transformers.BertModel,
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
    "neox": transformers.GPTNeoXForCausalLM,
}


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


def save_tiny(family: str, folder: Path) -> Path:
    """A model of `family` with random weights (always the same) and its tokenizer, in `folder`."""
    torch.manual_seed(0)
    CLASSES[family](tiny_config(family)).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder


def some_documents(n: int, seed: int = 0, longest: int = 60) -> list[str]:
    """`n` texts of 1 to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(n)]


def positions(batch: Batch) -> list[tuple[int, int]]:
    """Return (document, position in it) of every row of a batch of activations on text."""
    assert batch.provenance is not None
    columns = batch.provenance["document"], batch.provenance["position"]
    return list(zip(*(column.tolist() for column in columns), strict=True))

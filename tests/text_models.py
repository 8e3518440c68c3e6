"""A tiny random language model and a tiny random encoder, with a tokenizer and text, on disk."""

from __future__ import annotations

import random

import pytest
import torch

from sae import SAE
from sae.activations import FileText, ModelActivations
from sae.autoencoder.sparsity import TopK

TEXT = "the cat sat on a mat and saw its own tail run away from hot tin roof by night"
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    """{"causal": a GPT-2 with <bos>, "encoder": a BERT}, both 16 wide with 3 layers."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<unk>", "<bos>", "<sep>", "<pad>"]
    vocabulary = {token: i for i, token in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        sep_token="<sep>",
        pad_token="<pad>",
    )
    shared = {"vocab_size": len(vocabulary), "bos_token_id": 1, "pad_token_id": 3}
    torch.manual_seed(0)
    causal = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **shared, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.4
        )
    )
    encoder = transformers.BertModel(
        transformers.BertConfig(
            **shared,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            initializer_range=0.4,
        )
    )
    folders = {}
    for name, model in (("causal", causal), ("encoder", encoder)):
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        fast.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """40 documents of 5 to 50 words."""
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(5, 50))) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("<|endoftext|>".join(documents))
    return path


@pytest.fixture
def make_source(model_folders, text_file):
    """make_source(kind, **settings) -> ModelActivations; every second document is held out."""

    def make(kind: str = "causal", **settings) -> ModelActivations:
        hook = {"causal": "transformer.h.1", "encoder": "encoder.layer.1"}[kind]
        settings = {"context_size": 24, "model_batch_size": 5, "held_out_every": 2} | settings
        settings = {"hooks": [hook], **settings}
        source = ModelActivations(
            str(model_folders[kind]), text=FileText([str(text_file)]), **settings
        )
        source.setup()
        return source

    return make


@pytest.fixture
def sae():
    """A random SAE of 48 latents, 6 active, for the models above; its biases are not zero."""
    sae = SAE(16, TopK(d_sae=48, k=6), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.b_enc += 0.1 * torch.randn(48, generator=generator)
        sae.b_dec += 0.1 * torch.randn(16, generator=generator)
    return sae

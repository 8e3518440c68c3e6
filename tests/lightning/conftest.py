"""Folders of tiny models, for whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> dict[str, Path]:
    transformers = pytest.importorskip("transformers")
    from activations.conftest import tiny_config, tiny_tokenizer

    saved = {}
    for family, make in (("bert", transformers.BertModel), ("llama", transformers.LlamaForCausalLM)):
        torch.manual_seed(0)
        saved[family] = tmp_path_factory.mktemp(family)
        make(tiny_config(family)).save_pretrained(saved[family])
        tiny_tokenizer(family).save_pretrained(saved[family])
    return saved

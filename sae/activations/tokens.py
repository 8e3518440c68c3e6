"""Rows of tokens, how one is made, and the one rule for which positions count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.errors import UserError

Packing = Literal["packed", "document"]
Cursor = tuple[int, int, int]
"""Where a row starts: (pass over the text, document, offset of its first token in the document)."""
SPECIAL = ("bos", "eos", "cls", "sep", "pad", "mask")


@dataclass
class Contexts:
    """Rows of tokens as the model reads them. Every tensor is [rows, ctx] on the CPU."""

    tokens: Tensor
    """int64: token ids, padded on the right."""
    attention_mask: Tensor
    """int64: 1 on tokens, 0 on padding."""
    position_mask: Tensor
    """bool: the positions whose activations are used, by `PositionRule.token_mask`."""
    document: Tensor
    """int64: index of the document the token is from."""
    position: Tensor
    """int64: index of the token in its document, whose length is that of the separator behind it;
    -1 on what stands around a row."""
    start: Tensor
    """int64 [rows, 3]: the `Cursor` of each row."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def rows(self, index: slice | Tensor) -> Contexts:
        """The rows at `index`."""
        return Contexts(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def cat(parts: list[Contexts]) -> Contexts:
        """All rows of `parts`, in order."""
        names = [field.name for field in fields(Contexts)]
        return Contexts(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class PositionRule:
    """Which positions count, for training, normalisation, evaluation and report alike."""

    excluded: np.ndarray
    """bool [vocabulary]: the special tokens (BOS, EOS, CLS, SEP, PAD, MASK and added ones).

    The unknown token stands for text and counts, unless it is one of those too.
    """
    skip_first: int = 0
    """First positions of every row that do not count, its special tokens included."""
    outlier_norm: float | None = None
    """Positions whose norm exceeds this multiple of the block's median norm do not count."""

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, **settings: Any) -> PositionRule:
        """The rule for a tokenizer's special tokens."""
        ids = {getattr(tokenizer, f"{name}_token_id") for name in SPECIAL} - {None}
        ids |= set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        excluded = np.zeros(max(len(tokenizer), max(ids, default=0) + 1), dtype=bool)
        excluded[sorted(ids)] = True
        return cls(excluded, **settings)

    def token_mask(
        self, tokens: np.ndarray, attention_mask: np.ndarray | None = None
    ) -> np.ndarray:
        """bool [..., ctx] for rows of tokens [..., ctx]: what is known before the model runs."""
        counts = ~self.excluded[tokens]
        counts[..., : self.skip_first] = False
        return counts if attention_mask is None else counts & (attention_mask != 0)

    def next_tokens(
        self, tokens: Tensor, attention_mask: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(row, column) of the positions whose next token is real text, and its id, each [m]."""
        text = attention_mask.bool() & ~torch.from_numpy(self.excluded)[tokens]
        row, column = text[:, 1:].nonzero(as_tuple=True)
        return (row, column), tokens[row, column + 1]

    def activation_masks(self, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What only activations show, over positions [n]: (all finite, not an outlier), both bool.

        acts: hook -> [n, width]. A position is in only if it is with every hook. The outlier test
        leaves positions with NaN or infinity aside.
        """
        first = next(iter(acts.values()))
        finite = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
        for x in acts.values():
            finite &= x.isfinite().all(dim=-1)
        inlier = torch.ones_like(finite)
        if self.outlier_norm is not None and bool(finite.any()):
            for x in acts.values():
                norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
                inlier &= ~finite | (norm <= self.outlier_norm * norm[finite].median())
        return finite, inlier


@dataclass(frozen=True)
class Layout:
    """How a row is made: prefix, text, suffix, in `context_size` tokens."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: int | None
    pad: int
    context_size: int
    packing: Packing

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, context_size: int, packing: Packing = "packed"
    ) -> Layout:
        """The layout a tokenizer implies.

        Every row gets what the tokenizer puts around a text ([CLS] ... [SEP] for BERT, BOS for
        Llama and Gemma, nothing for GPT-2). Packed documents are separated by BOS where rows begin
        with it, else by EOS, else by SEP.
        """
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        prefix, suffix = tuple(full[:at]), tuple(full[at + len(bare) :])
        bos, eos, sep = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id
        separator = bos if bos in prefix else eos if eos is not None else sep
        pad = next((x for x in (tokenizer.pad_token_id, eos, sep) if x is not None), 0)
        if context_size <= (around := len(prefix) + len(suffix)):
            raise UserError(
                f"context_size={context_size} leaves no room for text beside {around} special "
                f"tokens; give at least {around + 1}"
            )
        return cls(prefix, suffix, separator, pad, context_size, packing)

    @property
    def body(self) -> int:
        """Tokens of text in a full row."""
        return self.context_size - len(self.prefix) - len(self.suffix)

    def windows(self, ids: list[int]) -> list[np.ndarray]:
        """A document's tokens as rows, unpadded, each with prefix and suffix."""
        return [
            np.array([*self.prefix, *ids[at : at + self.body], *self.suffix])
            for at in range(0, len(ids), self.body)
        ]

    def rows(self, flat: np.ndarray, lengths: np.ndarray, rule: PositionRule) -> Contexts:
        """Rows around flat [4, n, body] = token, pass, document, position, of `lengths` [n]."""
        token, pass_, document, position = flat
        n, begin, end = len(lengths), len(self.prefix), len(self.prefix) + self.body
        stop = begin + lengths[:, None]
        column = np.arange(self.context_size)[None]
        attention_mask = (column < stop + len(self.suffix)).astype(np.int64)
        tokens = np.full((n, self.context_size), self.pad)
        tokens[:, :begin] = self.prefix
        tokens[:, begin:end] = np.where(column[:, begin:end] < stop, token, self.pad)
        for i, suffix in enumerate(self.suffix):
            np.put_along_axis(tokens, stop + i, suffix, axis=1)
        documents = np.repeat(document[:, :1], self.context_size, axis=1)
        documents[:, begin:end] = np.where(column[:, begin:end] < stop, document, document[:, :1])
        positions = np.full_like(tokens, -1)
        positions[:, begin:end] = np.where(column[:, begin:end] < stop, position, -1)
        parts = (
            tokens,
            attention_mask,
            rule.token_mask(tokens, attention_mask),
            documents,
            positions,
            np.stack([pass_[:, 0], document[:, 0], position[:, 0]], axis=1),
        )
        return Contexts(*map(torch.from_numpy, parts))

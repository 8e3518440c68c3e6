"""Contexts (rows of tokens), how they are laid out, and the rule for which positions are used."""

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
"""Start of a context: (pass over the text, document, offset of its first token in the document)."""
SPECIAL = ("bos", "eos", "cls", "sep", "pad", "mask")


@dataclass
class Contexts:
    """Rows of tokens as the model reads them.

    Every tensor is [rows, ctx] on the CPU, except `start`.
    """

    tokens: Tensor
    """int64: token ids, padded on the right."""
    attention_mask: Tensor
    """int64: 1 on tokens, 0 on padding."""
    position_mask: Tensor
    """bool: the positions whose activations are used, by `PositionRule.token_mask`."""
    document: Tensor
    """int64: index of the document the token is from."""
    position: Tensor
    """int64: index of the token in its document; a separator counts as the token after the last.
    -1 on the special tokens and the padding around the text."""
    start: Tensor
    """int64 [rows, 3]: the `Cursor` of each row."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def rows(self, index: slice | Tensor) -> Contexts:
        """Return the rows at `index`."""
        return Contexts(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def cat(parts: list[Contexts]) -> Contexts:
        """Return all rows of `parts`, in order."""
        names = [field.name for field in fields(Contexts)]
        return Contexts(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class PositionRule:
    """The rule for which positions are used: by training, normalisation, evaluation and report."""

    excluded: np.ndarray
    """bool [vocabulary]: the special tokens (BOS, EOS, CLS, SEP, PAD, MASK and added ones).

    The unknown token stands for text, so it is used unless it is also one of those.
    """
    skip_first: int = 0
    """Number of positions left out at the start of every context, special tokens included."""
    outlier_norm: float | None = None
    """Positions with a norm above this multiple of the block's median norm are left out."""

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, **settings: Any) -> PositionRule:
        """Return the rule that excludes a tokenizer's special tokens."""
        ids = {getattr(tokenizer, f"{name}_token_id") for name in SPECIAL} - {None}
        ids |= set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        excluded = np.zeros(max(len(tokenizer), max(ids, default=0) + 1), dtype=bool)
        excluded[sorted(ids)] = True
        return cls(excluded, **settings)

    def token_mask(
        self, tokens: np.ndarray, attention_mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Return which positions of token rows [..., ctx] are used, bool [..., ctx].

        This part of the rule needs no activations, so it is known before the model runs.
        """
        used = ~self.excluded[tokens]
        used[..., : self.skip_first] = False
        return used if attention_mask is None else used & (attention_mask != 0)

    def next_tokens(
        self, tokens: Tensor, attention_mask: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the positions whose next token is real text, and the id of that token.

        Returns:
            (row, column), int64 [m] each, and the next tokens, int64 [m].
        """
        text = attention_mask.bool() & ~torch.from_numpy(self.excluded)[tokens]
        row, column = text[:, 1:].nonzero(as_tuple=True)
        return (row, column), tokens[row, column + 1]

    def activation_masks(self, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return which positions are finite and which are no outliers, bool [n] each.

        Args:
            acts: Hook -> activations [n, width]. A position must pass with every hook.

        The median norm is that of the finite positions.
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
    """The layout of a context: prefix, text and suffix in `context_size` tokens."""

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
        """Return the layout that a tokenizer implies.

        Every context gets what the tokenizer puts around a text ([CLS] ... [SEP] for BERT, BOS for
        Llama and Gemma, nothing for GPT-2). Packed documents are separated by BOS if contexts start
        with it, else by EOS, else by SEP.

        Raises:
            UserError: `context_size` leaves no room for text.
        """
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
        bos, eos, sep = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id
        separator = bos if bos in prefix else eos if eos is not None else sep
        pad = next((x for x in (tokenizer.pad_token_id, eos, sep) if x is not None), 0)
        if context_size <= (special := len(prefix) + len(suffix)):
            raise UserError(
                f"context_size={context_size} leaves no room for text beside {special} special "
                f"tokens; give at least {special + 1}"
            )
        return cls(prefix, suffix, separator, pad, context_size, packing)

    @property
    def body(self) -> int:
        """Number of text tokens in a full context."""
        return self.context_size - len(self.prefix) - len(self.suffix)

    def windows(self, ids: list[int]) -> list[np.ndarray]:
        """Cut a document's tokens into unpadded rows, each with prefix and suffix."""
        return [
            np.array([*self.prefix, *ids[start : start + self.body], *self.suffix])
            for start in range(0, len(ids), self.body)
        ]

    def rows(self, flat: np.ndarray, lengths: np.ndarray, rule: PositionRule) -> Contexts:
        """Build contexts around text.

        Args:
            flat: int64 [4, n, body]: token, pass, document and position of the text of n contexts.
            lengths: Number of text tokens in each context, int64 [n]; the rest is padding.
            rule: Which positions are used.
        """
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

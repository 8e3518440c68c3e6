"""Turn the arguments of `sae.train` into a source of activations and members."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required, TypedDict, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from sae.activations import BuiltinText, FileText, ModelActivations, Source, Text
from sae.activations.list_text import ListText
from sae.activations.tensors import Acts, IterableActivations, TensorActivations
from sae.argument_types import check_values, hints_of
from sae.autoencoder.losses import LossTerm
from sae.autoencoder.sites import Site
from sae.autoencoder.sparsity import Sparsity
from sae.errors import UserError
from sae.training import OptimConfig, SparseCoding
from sae.training.train_config import TrainConfig

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

T = TypeVar("T")

# A string in `Annotated` is what error messages say that an argument takes.
Activations = Annotated[
    Acts | Iterable[Acts] | Callable[[], Iterable[Acts]],
    "a tensor [..., d_in], a dict of tensors by hook, or an iterable of these",
]
"""A tensor [..., d_in], a dict of them by hook, or an iterable (or function that returns one)."""
TextLike = Annotated[
    Text | str | Path | Sequence[str | Path],
    "a path or glob, a list of documents (strings) or of Paths, or a Text such as FileText(...)",
]
"""A Text; a path or glob; a list of documents (strings) or of files (Paths)."""
Rules = Annotated[
    Sparsity
    | Sequence[Sparsity]
    | Mapping[
        str, Annotated[Sparsity | Mapping[str, Any], "a sparsity rule, or a dict of arguments"]
    ],
    "a sparsity rule such as TopK(d_sae=4096, k=32), or a list or dict of rules",
]
"""One rule, or several to train on the same activations."""
Dtype = Annotated[Literal["float32", "bfloat16"] | torch.dtype, "'float32' or 'bfloat16'"]
Devices = Annotated[
    int | list[int],
    "1, or the number of a device in a list, such as [0]; accelerator= chooses the CPU or a GPU",
]


class TrainArguments(TypedDict, total=False):
    """The arguments of `sae.train` besides `sae`, for type checkers and editors."""

    steps: Required[int]
    model: str | Path | None
    hooks: str | Sequence[str] | None
    text: TextLike | None
    context_size: int
    source: Source | None
    activations: Activations | None
    site: Site | None
    losses: Sequence[LossTerm] | None
    optim: OptimConfig | None
    lr: float | None
    batch_size: int
    block_batches: int
    held_out_tokens: int
    seed: int
    dead_after: int | None
    refresh_steps: int | None
    cuda_graph: bool
    accumulate: int
    dtype: Dtype
    ema: float | None
    resample_every: int | None
    sparse_coding: SparseCoding | None
    name: str | None
    runs: str | Path
    overwrite: bool
    resume: bool
    log_every: int | None
    validate_every: int | None
    checkpoint_every: int | None
    steps_per_call: int
    accelerator: str
    devices: Devices
    deterministic: bool
    profiler: str | None
    logger: Logger | Sequence[Logger] | None
    callbacks: Sequence[Callback] | None
    progress: bool


def source_from(
    *,
    model: str | Path | None,
    hooks: str | Sequence[str] | None,
    text: TextLike | None,
    context_size: int,
    source: Source | None,
    activations: Activations | None,
    held_out_tokens: int,
) -> Source:
    """Return the source of activations that the arguments describe.

    Raises:
        UserError: not exactly one of `model`, `source` and `activations` is given.
    """
    given = {"model": model, "source": source, "activations": activations}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        given_names = " and ".join(f"{name}=" for name in names)
        given_names = f"{given_names} are given" if names else "none of them is given"
        raise UserError(f"train needs one of model=, source= and activations=; {given_names}")
    if model is None and not (hooks is None and text is None):
        name = "hooks" if hooks is not None else "text"
        raise UserError(f"{name}= goes with model=; leave it out with {names[0]}=")
    if source is not None:
        return source
    if activations is not None:
        if isinstance(activations, Tensor | np.ndarray | Mapping):
            return TensorActivations(cast(Acts, activations))
        return IterableActivations(activations, held_out_tokens)
    if hooks is None:
        raise UserError(
            "hooks= is missing; name modules of the model, such as hooks='layers.3' for the "
            "residual stream after layer 3"
        )
    assert model is not None
    hooks = [hooks] if isinstance(hooks, str) else list(hooks)
    return ModelActivations(os.fspath(model), hooks, text_from(text), context_size=context_size)


def text_from(text: TextLike | None) -> Text:
    """Return the text that an argument describes; Python's own documentation if it is None."""
    if text is None:
        return BuiltinText()
    if isinstance(text, Text):
        return text
    if isinstance(text, str | os.PathLike):
        return FileText([os.fspath(text)])
    items = list(text)
    if items and all(isinstance(item, os.PathLike) for item in items):
        return FileText([os.fspath(item) for item in items])
    return ListText([str(item) for item in items])


def members_from(
    sae: Rules, shared: Mapping[str, Any], lr: float | None
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return the arguments of each member's `TrainConfig` by name, and whether there are several.

    Args:
        sae: One rule or several.
        shared: Arguments of `TrainConfig` that all members share.
        lr: Learning rate, in place of that of `shared["optim"]`.

    Raises:
        UserError: there is no rule, or a member has an argument that is not its own to have.
    """
    if isinstance(sae, Sparsity):
        return {"": _member({"sae": sae}, shared, lr)}, False
    if isinstance(sae, Mapping):
        rules = {name: dict(m) if isinstance(m, Mapping) else {"sae": m} for name, m in sae.items()}
    else:
        rules = {f"{i}-{type(rule).__name__}": {"sae": rule} for i, rule in enumerate(sae)}
    if not rules:
        raise UserError("sae= is empty; give a sparsity rule such as sae.TopK(d_sae=4096, k=32)")
    for name, own in rules.items():
        if unknown := set(own) - {"sae", "lr", *shared} | set(own) & {"accumulate"}:
            raise UserError(
                f"sae[{name!r}] has {', '.join(sorted(unknown))}; members may differ in sae, lr, "
                "losses, optim and the other settings of training, not in batches"
            )
        if "sae" not in own:
            raise UserError(
                f"sae[{name!r}] has no sparsity rule; give one, such as "
                "{'sae': sae.TopK(d_sae=4096, k=32)}"
            )
    return {
        name: in_member(name, lambda own=own: _member(own, shared, lr))
        for name, own in rules.items()
    }, True


def in_member(name: str, make: Callable[[], T]) -> T:
    """Return what `make` returns; its error is raised as that of the member of this name."""
    try:
        return make()
    except UserError as error:
        raise UserError(f"sae[{name!r}]: {error.message}") from None


def dtype_name(dtype: Dtype) -> str:
    """Return the name of a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def _member(own: Mapping[str, Any], shared: Mapping[str, Any], lr: float | None) -> dict[str, Any]:
    hints = {**hints_of(TrainConfig.__init__), "lr": float}
    given = {name: value for name, value in own.items() if value is not None}
    if isinstance(given.get("dtype"), torch.dtype):
        given["dtype"] = dtype_name(given["dtype"])
    arguments = {"sae": own["sae"], **shared, **own, **check_values(hints, given)}
    lr = arguments.pop("lr", lr)
    optim = arguments["optim"] or OptimConfig()
    if lr is not None:
        optim = replace(optim, lr=lr)
    losses = arguments["losses"]
    return arguments | {"optim": optim, "losses": None if losses is None else list(losses)}

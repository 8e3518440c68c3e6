"""Activations that the user already has: in memory, or as a stream of tensors."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.activations.batch import Batch, Split
from sae.activations.source import Source
from sae.argument_types import shown
from sae.errors import UserError

HOOK = "activations"
"""Name of the hook if activations come without names."""

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Acts = Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray]
"""Activations of one hook [..., d_in], or of several hooks by name with the same number of rows."""


class TensorActivations(Source):
    """Activations held in memory.

    The last 5% of the rows (at least two) are held out and never trained on. The other rows are
    shuffled anew in every pass, and passes repeat without end. The order depends on the seed only,
    so a run that is resumed with the same tensors ends with the same bits.

    Args:
        activations: Tensor [..., d_in], or a dict of such tensors by hook. All dimensions but the
            last count rows, in their order. Row i of every hook belongs together.
        held_out_fraction: Share of the rows that is held out, from the end.

    Raises:
        UserError: Activations are not finite floating-point numbers, or too few to hold two out.
    """

    def __init__(self, activations: Acts, held_out_fraction: float = 0.05) -> None:
        self.activations = _by_hook(activations)
        if not 0 < held_out_fraction < 1:
            raise UserError(
                f"held_out_fraction={held_out_fraction} must be above 0 and below 1, such as 0.05"
            )
        self.widths = {hook: acts.shape[1] for hook, acts in self.activations.items()}
        self.rows = next(iter(self.activations.values())).shape[0]
        self.held_out_fraction = held_out_fraction
        self.held_out_rows = max(1, round(held_out_fraction * self.rows))
        if self.rows < 3:
            raise UserError(
                f"activations has {self.rows} rows; give at least 3, because 2 are held out"
            )
        if self.held_out_rows < 2:
            raise UserError(
                f"activations has {self.rows} rows, and held_out_fraction={held_out_fraction} of "
                "them is 1 row, but FVU divides by the variance of the held-out rows; give at "
                f"least {math.ceil(1.6 / held_out_fraction)} rows, or source=TensorActivations(x, "
                f"held_out_fraction={math.ceil(200 / self.rows) / 100}) of sae.activations.tensors"
            )
        self._device = torch.device("cpu")
        self._orders: dict[int, Tensor] = {}

    def setup(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    @property
    def activation_dtype(self) -> torch.dtype:
        return next(iter(self.activations.values())).dtype

    def metadata(self) -> dict[str, Any]:
        return {
            "activations": "in memory",
            "hooks": list(self.widths),
            "rows": self.rows,
            "held_out_rows": self.held_out_rows,
        }

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        train_rows = self.rows - self.held_out_rows
        if split == "held_out":
            start = train_rows + index * size
            return self._take(slice(start, start + size))
        parts, first = [], index * size
        while size > 0:
            number, at = divmod(first, train_rows)
            parts.append(self._order(number, train_rows, seed)[at : at + size])
            first, size = first + len(parts[-1]), size - len(parts[-1])
        return self._take(torch.cat(parts))

    def _order(self, number: int, rows: int, seed: int) -> Tensor:
        """Return the order of the training rows in a pass, int64 [rows]."""
        if number not in self._orders:
            digest = hashlib.blake2b(f"pass {seed}/{number}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            self._orders = {number: torch.randperm(rows, generator=generator)}
        return self._orders[number]

    def _take(self, rows: Tensor | slice) -> Batch:
        return Batch({hook: acts[rows].to(self._device) for hook, acts in self.activations.items()})

    def hints(self, split: Split, size: int) -> Sequence[Any]:
        return [self.fingerprint()]

    def use_hints(self, split: Split, size: int, hints: Sequence[Any]) -> None:
        if hints and hints[0] != self.fingerprint():
            raise UserError(
                "activations differ from those of the run to resume; resume with the same data"
            )

    def fingerprint(self) -> str:
        """Return a short string that differs for other activations: of shapes and 64 rows."""
        digest = hashlib.sha256()
        sample = torch.linspace(0, self.rows - 1, min(64, self.rows)).long()
        for hook, acts in self.activations.items():
            digest.update(f"{hook} {tuple(acts.shape)} {acts.dtype}".encode())
            rows = acts[sample.to(acts.device)].cpu().contiguous()
            digest.update(rows.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


class IterableActivations(Source):
    """Activations from an iterable, or from a function that returns one.

    The first `held_out_tokens` rows of the stream are held out and never trained on. Training reads
    the rest in order; shuffling happens within a block, so rows that lie near each other in the
    stream should not be too similar, or `block_batches` should be large. At its end the stream
    starts again: a function is called again, a list or a data loader is iterated over again. A
    generator can be read only once: a run that needs more rows than it has ends with an error.

    To resume, the stream is read from its start up to where the run stopped, so it must give the
    same tensors again; then the resumed run ends with the same bits.

    Args:
        activations: Iterable of tensors [..., d_in] or of dicts of such tensors by hook, or a
            function without arguments that returns such an iterable.
        held_out_tokens: Number of rows to hold out.
    """

    def __init__(
        self, activations: Iterable[Acts] | Callable[[], Iterable[Acts]], held_out_tokens: int
    ) -> None:
        self.activations, self.held_out_tokens = activations, held_out_tokens
        self.rows_read = 0
        self._device = torch.device("cpu")
        self._lock = threading.Lock()
        self._stream: Iterator[dict[str, Tensor]] | None = None
        self._started = False
        self._widths: dict[str, int] | None = None
        self._next_row = 0
        self._rest: dict[str, Tensor] | None = None
        self._held_out: dict[str, Tensor] | None = None

    def setup(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        if self._held_out is None:
            self._restart()

    def metadata(self) -> dict[str, Any]:
        return {
            "activations": "from an iterable",
            "hooks": list(self.widths),
            "held_out_rows": len(next(iter(self._held_out.values()))) if self._held_out else 0,
        }

    @property
    def activation_dtype(self) -> torch.dtype:
        return next(iter(self._held_out.values())).dtype if self._held_out else torch.float32

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        with self._lock:
            if self._held_out is None:
                self._restart()
            assert self._held_out is not None
            if split == "held_out":
                part = slice(index * size, (index + 1) * size)
                return self._batch({h: acts[part] for h, acts in self._held_out.items()})
            start = index * size
            if start < self._next_row:
                self._restart()
            while self._next_row < start:  # after a resume: read up to where the run stopped
                self._take(min(size, start - self._next_row))
            return self._batch(self._take(size))

    def _batch(self, rows: dict[str, Tensor]) -> Batch:
        return Batch({hook: acts.to(self._device) for hook, acts in rows.items()})

    def _restart(self) -> None:
        """Go to the first training row of the stream."""
        self._stream, self._rest, self._next_row = self._open(), None, 0
        held_out = self._read(self.held_out_tokens)
        if self._held_out is None:
            self._held_out = held_out
            self.widths = {hook: acts.shape[1] for hook, acts in held_out.items()}
        if self._rest is None and (more := next(self._stream, None)) is not None:
            self._rest = more
        if self._rest is None:
            rows = len(next(iter(held_out.values()), ()))
            raise UserError(
                f"activations has {rows} rows, and held_out_tokens={self.held_out_tokens} leaves "
                "none to train on; lower it, or give more"
            )

    def _open(self) -> Iterator[dict[str, Tensor]]:
        source = self.activations
        if callable(source) and not isinstance(source, Iterable):
            stream = source()
            if not isinstance(stream, Iterable) or isinstance(stream, str):
                raise UserError(
                    f"activations is a function that returned {shown(stream)}; let it return an "
                    "iterable of tensors"
                )
            stream = iter(stream)
        else:
            stream = iter(source)
            if stream is source and self._started:  # a generator, which starts only once
                raise UserError(
                    f"activations ended after {self.rows_read:,} rows, and the run needs more; "
                    "give a function that returns a new iterator, or lower steps"
                )
        self._started = True
        return (self._checked(_by_hook(tensors, " item")) for tensors in stream)

    def _checked(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of one tensor if they have the hooks and widths of the first."""
        widths = {hook: acts.shape[1] for hook, acts in rows.items()}
        if self._widths is None:
            self._widths = widths
        if widths != self._widths:
            raise UserError(
                f"activations with hooks and widths {widths} differ from the first, which have "
                f"{self._widths}; give the same for all"
            )
        return rows

    def _read(self, size: int) -> dict[str, Tensor]:
        """Return the next rows of the stream: `size` of them, or fewer at its end."""
        assert self._stream is not None
        parts: list[dict[str, Tensor]] = []
        missing = size
        while missing > 0:
            rows = self._rest if self._rest is not None else next(self._stream, None)
            self._rest = None
            if rows is None:
                break
            n = len(next(iter(rows.values())))
            if n > missing:
                self._rest = {hook: acts[missing:] for hook, acts in rows.items()}
                rows = {hook: acts[:missing] for hook, acts in rows.items()}
                n = missing
            parts.append(rows)
            missing -= n
            self.rows_read += n
        if not parts:
            return {}
        return {hook: torch.cat([part[hook] for part in parts]) for hook in parts[0]}

    def _take(self, size: int) -> dict[str, Tensor]:
        """Return the next `size` training rows, from as many passes as it takes."""
        parts = [self._read(size)]
        while (missing := size - sum(len(next(iter(p.values()), ())) for p in parts)) > 0:
            row = self._next_row
            self._restart()
            self._next_row = row
            parts.append(self._read(missing))
        self._next_row += size
        parts = [part for part in parts if part]
        return {hook: torch.cat([part[hook] for part in parts]) for hook in parts[0]}


def _as_tensor(acts: Any, name: str) -> Tensor:
    """Return activations of one hook as a tensor; `name` stands for them in messages."""
    try:
        if isinstance(acts, np.ndarray) and acts.dtype.kind == "f":
            # torch refuses strides below 0 and numbers of another byte order than the machine's.
            wanted = acts.dtype.newbyteorder("=")
            if acts.dtype != wanted or any(stride < 0 for stride in acts.strides):
                acts = np.ascontiguousarray(acts, dtype=wanted)
        return torch.as_tensor(acts)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name}={shown(acts)} is not a tensor; give one [..., d_in]") from None


def _by_hook(activations: Acts | Sequence[Tensor], item: str = "") -> dict[str, Tensor]:
    """Return activations as float tensors [rows, d_in] by hook.

    Args:
        activations: A tensor, or tensors by hook.
        item: " item" in messages if these are one of many.
    """
    if isinstance(activations, tuple | list) and [*map(type, activations)] == [Tensor]:
        (activations,) = activations  # an item of a DataLoader of a TensorDataset
    named = activations if isinstance(activations, Mapping) else {HOOK: activations}
    flat: dict[str, Tensor] = {}
    for hook, acts in named.items():
        name = f"activations{item}" if hook == HOOK else f"activations{item}[{hook!r}]"
        acts = _as_tensor(acts, name)
        if acts.dim() < 2 or acts.dtype not in _DTYPES or acts.shape[-1] == 0:
            raise UserError(
                f"{name} has shape {list(acts.shape)} and dtype {acts.dtype}; give floating-point "
                "numbers [rows, d_in], or with more dimensions before d_in"
            )
        if acts.layout != torch.strided or acts.is_meta:
            raise UserError(f"{name} is a sparse or meta tensor; give a dense one with values")
        acts = acts.float() if acts.dtype == torch.float64 else acts
        flat[hook] = acts.detach().reshape(-1, acts.shape[-1])
        if broken := int((~flat[hook].isfinite().all(dim=1)).sum()):
            raise UserError(
                f"activations has {broken} rows in {hook} that are NaN or infinite; remove them"
            )
    rows = {hook: len(acts) for hook, acts in flat.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{hook} {n}" for hook, n in rows.items())
        raise UserError(f"activations differ in their number of rows: {counts}; align them")
    if not rows:
        raise UserError("activations={} has no hook; give a tensor, or a dict of tensors by hook")
    return flat

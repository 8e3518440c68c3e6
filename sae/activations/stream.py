"""Shuffles blocks of activations into batches that are a pure function of their index."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sae.activations.batch import Batch, Split
from sae.activations.full_contexts import FullContextBatches
from sae.activations.source import Source
from sae.errors import UserError
from sae.progress import progress


class Stream:
    """An iterable of shuffled batches of activations that can resume at any batch.

    Batch t is rows perm[i * B : (i + 1) * B] of block n, where n, i = divmod(t, block_batches), B
    is `batch_size`, and perm is a permutation drawn from (seed, n). Batch t therefore depends only
    on the settings, the seed and t, and a stream resumes from the number of batches handed out.

    "train" is shuffled inside blocks, and every `iter` continues where the last one stopped. It
    never ends; with `batches`, an iteration stops whenever a multiple of `batches` is reached.
    "held_out" is not shuffled, starts again with every `iter`, and ends with the source, at a block
    without rows. Its batches are full, except the last batch of a block that the source left short.

    Args:
        source: The source, set up.
        split: "train" or "held_out".
        batch_size: Rows per batch.
        block_batches: Batches per block.
        seed: Seed of the shuffling.
        batches: `len(stream)`; there is no length without it. Lightning fetches one batch ahead
            from a loader without a length, and the position in a checkpoint would then be one more
            than what was trained on.
        overlap: Harvest block n + 1 in a background thread while block n is handed out. This helps
            on a GPU, where both run on CUDA streams of their own; on a CPU they compete for the
            same cores. Batches are the same either way. An error in the thread is raised when its
            block is due.
        full_contexts: Give "train" batches of full contexts, shuffled as such, for losses that run
            the model on changed activations. Batch i of a block has the contexts that start among
            positions i * B ... (i + 1) * B of the block in its shuffled order, and
            `Batch.model_pass`. A batch has about B rows, and a block a little more than
            B * block_batches, because no context is cut. The model runs once per batch, and never
            ahead.

    Raises:
        UserError: A setting is out of range, or the source has no full contexts.
    """

    def __init__(
        self,
        source: Source,
        *,
        split: Split = "train",
        batch_size: int,
        block_batches: int,
        seed: int = 0,
        batches: int | None = None,
        overlap: bool = False,
        full_contexts: bool = False,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("block_batches", block_batches)):
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if full_contexts and split != "train":
            raise ValueError("full_contexts=True needs split='train'")
        self.source = source
        self.split: Split = split
        self.batch_size = batch_size
        self.block_batches = block_batches
        self.seed = seed
        self.batches = batches
        self.overlap = overlap
        self.position = 0
        self._first: Batch | None = None
        self._contexts: FullContextBatches | None = None
        if full_contexts:
            self._contexts = source.full_contexts(batch_size, block_batches)

    @property
    def block_size(self) -> int:
        """Number of rows in a block."""
        return self.batch_size * self.block_batches

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("this stream has no length")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        if self.split == "held_out":
            self.position = 0
        if self._contexts is not None:
            yield from self._full_context_batches()
            return
        blocks = _Overlapped(self._block) if self.overlap else _Direct(self._block)
        try:
            yield from self._batches(blocks)
        finally:
            blocks.close()

    def _batches(self, blocks: _Direct) -> Iterator[Batch]:
        order: Tensor | None = None
        current = -1
        rows: Batch | None = None
        end = self._end()
        while self.position < end:
            index, i = divmod(self.position, self.block_batches)
            if index != current:
                rows = None  # frees the old block before the next one is made
                more = (index + 1) * self.block_batches < end
                current, rows = index, blocks.get(index, more)
                order = self._order(index, rows.device) if self.split == "train" else None
            assert rows is not None
            if len(rows) == 0:
                return
            start, stop = i * self.batch_size, min((i + 1) * self.batch_size, len(rows))
            if start >= len(rows):
                self.position = (index + 1) * self.block_batches
                continue
            self.position += 1
            part = slice(start, stop)
            yield rows.rows(part if order is None else order[part])

    def _full_context_batches(self) -> Iterator[Batch]:
        assert self._contexts is not None
        end = self._end()
        while self.position < end:
            index, i = divmod(self.position, self.block_batches)
            batch = self._contexts.batch(index, i, self._generator(index))
            self.position += 1
            yield batch

    def _end(self) -> float:
        if self.batches is None:
            return math.inf
        return (self.position // self.batches + 1) * self.batches

    def first_block(self) -> Batch:
        """Return block 0 in the order of the source; it is kept for the iteration."""
        if self._first is None:
            with progress("harvesting the first block of activations"):
                block = self._block(0)
            if self._contexts is not None:
                return block
            self._first = block
        return self._first

    def _block(self, index: int) -> Batch:
        if index == 0 and self._first is not None:
            block, self._first = self._first, None
            return block
        return self.source.block(self.split, index, self.block_size, self.seed)

    def _order(self, index: int, device: torch.device) -> Tensor:
        return torch.randperm(self.block_size, generator=self._generator(index)).to(device)

    def _generator(self, index: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{index}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def seek(self, position: int) -> None:
        """Continue with batch `position`, also during an iteration."""
        self.position = position

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches handed out, the seed, and hints that only save time."""
        hints = self.source.hints(self.split, self.block_size)
        return {"position": self.position, "seed": self.seed, "hints": list(hints)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch that was handed out when `state` was saved.

        Raises:
            UserError: The state belongs to another seed.
        """
        if state["seed"] != self.seed:
            raise UserError(
                f"seed={self.seed} differs from seed={state['seed']} of the run to resume; "
                "resume with the same seed"
            )
        self.source.use_hints(self.split, self.block_size, state["hints"])
        self.seek(state["position"])


class _Direct:
    """Makes a block when it is requested."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def get(self, index: int, more: bool) -> Batch:
        return self.make(index)

    def close(self) -> None:
        pass


class _Overlapped(_Direct):
    """Starts making block n + 1 in a thread as soon as block n is fetched."""

    def __init__(self, make: Any) -> None:
        super().__init__(make)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="harvest")
        self.ahead: tuple[int, Future[Batch]] | None = None
        self.side = torch.cuda.Stream() if torch.cuda.is_available() else None

    def get(self, index: int, more: bool) -> Batch:
        if self.ahead is None or self.ahead[0] != index:
            self.ahead = (index, self.pool.submit(self._make, index))
        block = self.ahead[1].result()
        if self.side is not None:
            # The block is allocated on the side stream and read on this one. Without record_stream
            # its memory could go to block n + 2 while kernels queued here still read it.
            for tensor in block.tensors():
                if tensor.is_cuda:
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
        self.ahead = (index + 1, self.pool.submit(self._make, index + 1)) if more else None
        return block

    def _make(self, index: int) -> Batch:
        with torch.cuda.stream(self.side) if self.side is not None else nullcontext():
            block = self.make(index)
            if self.side is not None:
                self.side.synchronize()
        return block

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

"""The LightningDataModule around a stream of activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import lightning as L

from sae.activations import Batch, Source, Stream
from sae.errors import UserError


class ActivationDataModule(L.LightningDataModule):
    """Activations to train on, and held-out ones that are never trained on.

    Args:
        source: where activations come from: a model on text, or a world.
        batch_size: activations per step, or per micro-batch with `model.accumulate`. With EndToEnd
            in the objective, a batch is of whole contexts and has about so many.
        block_batches: batches per block; a block is harvested whole and shuffled, so this is how
            far apart two activations of one batch can come from, and what is held in memory.
        held_out_tokens: how many held-out activations to judge by.
        seed: of the shuffling; set by `--seed`.
        steps_per_call: steps that Lightning hands over at a time; set by the trainer's.
        accumulate: batches that one step learns from; set by the model's.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 2048,
        block_batches: int = 32,
        held_out_tokens: int = 16384,
        seed: int = 0,
        steps_per_call: int = 1,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        settings = {
            "batch_size": batch_size,
            "block_batches": block_batches,
            "held_out_tokens": held_out_tokens,
        }
        for name, value in settings.items():
            if value < 1:
                raise UserError(f"data.{name}={value}; give at least 1")
        self.source = source
        self.batch_size, self.block_batches = batch_size, block_batches
        self.held_out_tokens, self.seed = held_out_tokens, seed
        self.steps_per_call, self.accumulate = steps_per_call, accumulate
        self._ready = False

    def setup(self, stage: str) -> None:
        if self._ready:
            return
        device = self.trainer.strategy.root_device
        self.source.setup(device)
        self.stream = Stream(
            self.source,
            split="train",
            batch_size=self.batch_size,
            block_batches=self.block_batches,
            seed=self.seed,
            # With a length Lightning does not fetch ahead: position is batches done.
            batches=self.trainer.max_steps * self.accumulate,
            overlap=device.type == "cuda",
            whole=self.trainer.lightning_module.full_contexts,
        )
        self._ready = True

    def train_dataloader(self) -> BatchGroups:
        return BatchGroups(self.stream, self.steps_per_call, self.accumulate)

    def val_dataloader(self) -> HeldOut:
        if not hasattr(self, "held_out"):
            self.held_out = HeldOut(self.source, self.held_out_tokens, self.batch_size, self.seed)
        return self.held_out


class BatchGroups:
    """The batches of a stream in lists for `steps_per_call` steps of `accumulate` batches each, the
    last list shorter where that does not divide."""

    def __init__(self, stream: Stream, steps_per_call: int, accumulate: int = 1) -> None:
        self.stream = stream
        self.counts = {"steps_per_call": steps_per_call, "accumulate": accumulate}

    @property
    def size(self) -> int:
        return math.prod(self.counts.values())

    def __len__(self) -> int:
        return math.ceil(len(self.stream) / self.size)

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.stream)
        while some := list(itertools.islice(batches, self.size)):
            yield some

    def state_dict(self) -> dict[str, Any]:
        return {**self.stream.state_dict(), **self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError where another number of batches would be handed over: Lightning's
        counters count calls."""
        for name, where in (("steps_per_call", "trainer"), ("accumulate", "model")):
            if state.get(name, 1) != self.counts[name]:
                raise UserError(
                    f"{where}.{name}={self.counts[name]} differs from {state[name]} of the run to "
                    "resume; resume with the same"
                )
        self.stream.load_state_dict(state)


class HeldOut:
    """Held-out activations, harvested once and kept: they are judged by again and again."""

    def __init__(self, source: Source, tokens: int, batch_size: int, seed: int) -> None:
        self._harvest = lambda: source.block("held_out", 0, tokens, seed)
        self.batch_size = batch_size
        self._batches: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is None:
            block = self._harvest()
            parts = {hook: acts.split(self.batch_size) for hook, acts in block.acts.items()}
            meta = [t.split(self.batch_size) for t in (block.document, block.position, block.token)]
            self._batches = [
                Batch({hook: part[i] for hook, part in parts.items()}, *(m[i] for m in meta))
                for i in range(len(meta[0]))
            ]
        return iter(self._batches)

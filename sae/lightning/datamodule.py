"""The LightningDataModule around a stream of activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import lightning as L

from sae.activations import ActivationData, Batch, HeldOutBatches, Stream
from sae.errors import UserError


class ActivationDataModule(L.LightningDataModule):
    """The activations of a run, for a Lightning trainer.

    Args:
        data: The activations to train on, and the held-out ones.
        steps_per_call: Steps per call of Lightning's training loop.

    Attributes:
        stream: The training batches, once `setup` was called.
    """

    def __init__(self, data: ActivationData, steps_per_call: int = 1) -> None:
        super().__init__()
        self.data, self.steps_per_call = data, steps_per_call
        self.stream: Stream | None = None
        self._held_out: HeldOutBatches | None = None

    def setup(self, stage: str) -> None:
        if self.stream is not None:
            return
        assert self.trainer is not None  # Lightning sets it before it calls this method
        device = self.trainer.strategy.root_device
        self.data.source.setup(device)
        self.stream = self.data.train_stream(
            self.trainer.max_steps,
            overlap=device.type == "cuda",
            full_contexts=bool(self.trainer.lightning_module.full_contexts),
        )

    def train_dataloader(self) -> BatchGroups:
        assert self.stream is not None  # set by `setup`
        return BatchGroups(self.stream, self.steps_per_call, self.data.accumulate)

    def val_dataloader(self) -> HeldOutBatches:
        if self._held_out is None:
            self._held_out = self.data.held_out_batches()
        return self._held_out


class BatchGroups:
    """The batches of a stream in lists, one list for each call of Lightning's training loop.

    A list has `steps_per_call * accumulate` batches. The last one is shorter if the number of
    batches is not a multiple of that.
    """

    def __init__(self, stream: Stream, steps_per_call: int, accumulate: int = 1) -> None:
        self.stream = stream
        self.counts = {"steps_per_call": steps_per_call, "accumulate": accumulate}

    @property
    def size(self) -> int:
        """Batches per list."""
        return math.prod(self.counts.values())

    def __len__(self) -> int:
        return math.ceil(len(self.stream) / self.size)

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.stream)
        while group := list(itertools.islice(batches, self.size)):
            yield group

    def state_dict(self) -> dict[str, Any]:
        return {**self.stream.state_dict(), **self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last list of the saved run.

        Raises UserError if the size of a list differs from the saved run's, because Lightning
        counts lists and would resume at another batch.
        """
        for name, section in (("steps_per_call", "trainer"), ("accumulate", "model")):
            if state.get(name, 1) != self.counts[name]:
                raise UserError(
                    f"{section}.{name}={self.counts[name]} differs from {state[name]} in the run "
                    "to resume; resume with the same value"
                )
        self.stream.load_state_dict(state)

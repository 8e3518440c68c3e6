"""The training and held-out activations of a run, without any training framework."""

from collections.abc import Iterator

from sae.activations.batch import Batch
from sae.activations.source import Source
from sae.activations.stream import Stream
from sae.argument_types import checked_arguments
from sae.errors import UserError


class HeldOutBatches:
    """Held-out activations that are harvested once and kept in memory for every validation."""

    def __init__(self, source: Source, tokens: int, batch_size: int, seed: int) -> None:
        self.source, self.tokens, self.batch_size, self.seed = source, tokens, batch_size, seed
        self._batches: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is None:
            block = self.source.block("held_out", 0, self.tokens, self.seed)
            self._batches = block.split(self.batch_size)
        return iter(self._batches)


class ActivationData:
    """Activations to train on, and held-out ones that are never trained on.

    Args:
        source: where activations come from: a model on text, or a world.
        batch_size: activations per step, or per micro-batch with `model.accumulate`. With EndToEnd
            in the losses, a batch consists of full contexts and has about this many activations.
        block_batches: batches per block. A block is harvested at once and shuffled in memory, so
            this sets how far apart two activations of one batch can come from.
        held_out_tokens: number of held-out activations for validation and the final metrics.
        seed: seed of the shuffling.
        accumulate: batches per training step.

    Raises:
        UserError: a count is too small.
    """

    @checked_arguments("data.")
    def __init__(
        self,
        source: Source,
        batch_size: int = 2048,
        block_batches: int = 32,
        held_out_tokens: int = 16384,
        seed: int = 0,
        accumulate: int = 1,
    ) -> None:
        counts = {
            "batch_size": batch_size,
            "block_batches": block_batches,
            "held_out_tokens": held_out_tokens,
        }
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"data.{name}={value}; give at least 1")
        if held_out_tokens == 1:
            raise UserError(
                "data.held_out_tokens=1: FVU divides by the variance of the held-out activations, "
                "which one does not have; give at least 2"
            )
        self.source = source
        self.batch_size, self.block_batches = batch_size, block_batches
        self.held_out_tokens, self.seed = held_out_tokens, seed
        self.accumulate = accumulate

    def train_stream(
        self,
        steps: int,
        *,
        source: Source | None = None,
        overlap: bool = False,
        full_contexts: bool = False,
    ) -> Stream:
        """Return the shuffled training batches of `steps` steps.

        Args:
            steps: training steps; each takes `accumulate` batches.
            source: a source to read in place of the run's own, such as a baseline's.
            overlap: harvest the next block in the background while one is used.
            full_contexts: give batches of full contexts, for losses that run the model.
        """
        return Stream(
            source or self.source,
            split="train",
            batch_size=self.batch_size,
            block_batches=self.block_batches,
            seed=self.seed,
            # With a length Lightning does not fetch ahead: position is batches done.
            batches=steps * self.accumulate,
            overlap=overlap,
            full_contexts=full_contexts,
        )

    def held_out_batches(self) -> HeldOutBatches:
        """Return the held-out activations in batches, to be iterated over many times."""
        return HeldOutBatches(self.source, self.held_out_tokens, self.batch_size, self.seed)

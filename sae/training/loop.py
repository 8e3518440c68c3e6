"""The plain training loop: the same step as under Lightning, in a dozen lines to copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sae.activations import Batch, Stream
from sae.training.learner import Learner


def train(learners: Sequence[Learner], stream: Stream, *, accumulate: int = 1) -> Iterator[int]:
    """Train SAEs side by side on one stream, and yield the number of steps done after each step.

    It is a generator so that the caller decides what happens between steps: log
    `learner.pop_metrics()`, show progress, validate, save. It ends when the stream ends.

        learner = TrainConfig(TopK(d_sae=4096, k=32)).build_learner(source.widths, 2048, steps)
        for step in train([learner], data.train_stream(steps)):
            if step % 50 == 0:
                print(step, learner.pop_metrics())
        learner.export().save("my-sae")

    Args:
        learners: the SAEs with their optimizers. Move them to their device first.
        stream: training batches.
        accumulate: batches per step.
    """
    device = learners[0].sae.W_dec.device
    for learner in learners:
        if learner.scale is None:  # not resumed; the stream keeps its first block until it is used
            learner.initialise(stream.first_block().to(device).acts)
    for step, batches in enumerate(_grouped(stream, accumulate), start=1):
        activations = [batch.to(device).acts for batch in batches]
        for learner in learners:
            learner.step(*activations)
        yield step


def _grouped(stream: Iterable[Batch], size: int) -> Iterator[tuple[Batch, ...]]:
    """Return the batches of `stream` in tuples of `size`."""
    batches = iter(stream)
    return zip(*[batches] * size, strict=True)

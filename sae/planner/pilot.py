"""A short pilot of a run on this machine: what each part of it takes, and the process itself."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every optimiser imports it at its first step: part of the process

from sae.activations import Batch, Stream
from sae.evaluation.evaluate import evaluate
from sae.metrics.downstream import downstream
from sae.metrics.examples import EXAMPLE_TOKENS, top_examples, write_examples
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU
from sae.runs.checkpoint import save_checkpoint
from sae.training import Learner
from sae.training.run_settings import RunSettings
from sae.training.train_config import TrainConfig

ROWS = 8192  # harvested, to learn from and to extrapolate from
FEW, MORE = 1024, 4096  # held-out activations, two points of a line
STEPS_SECONDS = 0.7
DOWNSTREAM_TOKENS = 16_384


@dataclass(frozen=True)
class Timed:
    """Seconds of one member: of a step, in the first part of a run that has two and in the rest; of
    judging all held-out activations once; of its share of a checkpoint; of all that follows the
    last step."""

    first: float
    step: float
    validation: float
    checkpoint: float
    finish: float


class Pilot:
    """Harvests part of a block and trains some steps of each distinct shape.

    Args:
        settings: of the run. Its source is set up, and left as it was but for caches.

    Attributes:
        batch_seconds: to harvest and hand out one batch.
        sample: bytes of activations it holds.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.data, self.settings = settings.data, settings
        self.device = settings.device
        self.source = self.data.source
        self.source.setup(self.device)
        whole = next(iter(settings.members.values())).full_contexts
        size = self.data.batch_size
        self.count = min(self.data.block_batches, max(2, math.ceil(ROWS / size)))
        stream = Stream(
            self.source,
            split="train",
            batch_size=size,
            block_batches=self.count,
            seed=self.data.seed,
            full_contexts=whole,
        )
        self.source.block("train", 0, min(size, 256), self.data.seed)  # warms up
        found: list[Batch] = []
        seconds = self.time(lambda: found.extend(itertools.islice(stream, self.count)))
        self.batches, self.batch_seconds = found, seconds / self.count
        self.sample = sum(t.numel() * t.itemsize for b in found for t in b.acts.values())
        self._finishes: dict[Any, float] = {}
        self._shapes: dict[Any, Timed] = {}

    def time(self, call: Callable[[], Any]) -> float:
        """Seconds of a call, the device's work included."""
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @cached_property
    def held_out(self) -> int:
        """Held-out activations that there are, up to as many as anyone asks for."""
        most = max(self.data.held_out_tokens, EXAMPLE_TOKENS)
        if (text := self.source.text_model()) is None:
            return most
        found = 0
        for contexts in text.contexts("held_out"):
            found += int(contexts.position_mask.sum())
            if found >= most:
                break
        return min(found, most)

    def member(self, recipe: TrainConfig) -> Timed:
        """Measured once for each shape: what a rate or a seed differs in takes no other time."""
        optim = recipe.optim
        shape = repr(
            (
                recipe.sparsity,
                recipe.site,
                [type(term) for term in recipe.losses],
                (optim.name, optim.moments, optim.clip_norm is None, optim.unit_norm),
                (recipe.sae_dtype, recipe.ema is None, recipe.accumulate, recipe.sparse_coding),
            )
        )
        if shape not in self._shapes:
            self._shapes[shape] = self._measured(recipe)
        return self._shapes[shape]

    def _measured(self, recipe: TrainConfig) -> Timed:
        data, steps = self.data, self.settings.steps
        learner = recipe.build_learner(self.source.widths, data.batch_size, steps).to(self.device)
        hooks = self.batches[0].acts
        learner.initialise({h: torch.cat([b.acts[h] for b in self.batches]) for h in hooks})
        # Schedules stand where they are half-way, and sparse coding also in its first part.
        step = first = self._step(learner, recipe, learner.start_step + learner.total_steps // 2)
        if learner.start_step:
            first = self._step(learner, recipe, learner.start_step // 2)
        judged = learner.judged()
        fvu = FVU(learner.sae.d_out, self.device)
        counted = Firing(learner.sae.d_sae, self.device)

        def judge() -> None:
            for batch in self.batches[:2]:
                y, y_hat, codes = learner.predict(batch.acts, sae=judged)
                fvu.update(y, y_hat)
                counted.update(codes)

        rows = sum(map(len, self.batches[:2]))
        validation = self.time(judge) * min(data.held_out_tokens, self.held_out) / rows
        key = (learner.sae.d_sae, type(recipe.sparsity))
        if key not in self._finishes:
            self._finishes[key] = self._finish(learner)
        saved = {"learner": learner.state_dict(), "optimiser": learner.optimizer.state_dict()}
        folder = self.settings.runs
        with tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else None) as folder:
            checkpoint = self.time(lambda: save_checkpoint(saved, Path(folder) / "pilot.ckpt"))
        return Timed(first, step, validation, checkpoint, self._finishes[key])

    def _step(self, learner: Learner, recipe: TrainConfig, at: int) -> float:
        """Mean seconds of step `at`, again and again, after two."""
        batches = itertools.cycle(self.batches)

        def step() -> None:
            learner.steps = at
            micro = list(itertools.islice(batches, recipe.accumulate))
            learner.step(*[b.acts for b in micro], runs=[b.run for b in micro])

        for _ in range(2):
            self.time(step)
        seconds: list[float] = []
        while len(seconds) < 5 or sum(seconds) < STEPS_SECONDS:
            seconds.append(self.time(step))
        learner.steps = at
        return sum(seconds) / len(seconds)

    @torch.no_grad()
    def _finish(self, learner: Learner) -> float:
        """Export, figures on held-out activations, the model spliced, examples."""
        sae, source = learner.export(), self.source
        most = min(self.data.held_out_tokens, self.held_out)
        if (text := source.text_model()) is None:
            return self.time(lambda: evaluate(sae, source, max_tokens=most))
        mean = torch.zeros(sae.d_out, device=self.device)
        found = []

        def figures(tokens: int) -> None:
            evaluate(sae, source, max_tokens=tokens, downstream_tokens=0)

        def spliced(tokens: int) -> None:
            downstream(sae, text, mean=mean, max_tokens=tokens)

        def examples(tokens: int) -> None:
            found[:] = top_examples(sae, text, max_tokens=tokens)

        parts = (
            (figures, most),
            (spliced, min(DOWNSTREAM_TOKENS, self.held_out)),
            (examples, min(EXAMPLE_TOKENS, self.held_out)),
        )
        seconds = sum(self._line(call, tokens) for call, tokens in parts)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "examples.jsonl"
            return seconds + self.time(lambda: write_examples(found, file))

    def _line(self, call: Callable[[int], Any], tokens: int) -> float:
        """Seconds of call(tokens), from those of two smaller ones."""
        if tokens <= MORE:
            return self.time(lambda: call(tokens))
        few = self.time(lambda: call(FEW))
        more = self.time(lambda: call(MORE))
        slope = (more - few) / (MORE - FEW)
        slope = min(max(slope, 0.5 * more / MORE), more / MORE)
        return more + slope * (tokens - MORE)

"""Time the parts of a run on this machine with a short pilot."""

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
import torch._dynamo  # every optimizer imports it at its first step

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

ROWS = 8192  # number of activations to harvest
FEW, MORE = 1024, 4096  # held-out activations at which to time, for extrapolation
STEPS_SECONDS = 0.7  # time spent on steps of each shape
DOWNSTREAM_TOKENS = 16_384


@dataclass(frozen=True)
class MemberTimes:
    """Times of one member in seconds.

    Attributes:
        first_step: A step in the first phase of a run with two phases (sparse coding).
        step: A step otherwise.
        validation: One validation on all held-out activations.
        checkpoint: Its share of a checkpoint.
        finish: Everything after the last step.
    """

    first_step: float
    step: float
    validation: float
    checkpoint: float
    finish: float


class Pilot:
    """A pilot of a run: it harvests part of a block and takes some steps of each distinct shape.

    Args:
        settings: Settings of the run. Its source is set up, and not changed except for caches.

    Attributes:
        batches: The harvested batches.
        batch_seconds: Time to harvest and shuffle one batch.
        sample: Bytes of the harvested activations.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.data, self.settings = settings.data, settings
        self.device = settings.device
        self.source = self.data.source
        self.source.setup(self.device)
        size = self.data.batch_size
        self.count = min(self.data.block_batches, max(2, math.ceil(ROWS / size)))
        stream = Stream(
            self.source,
            split="train",
            batch_size=size,
            block_batches=self.count,
            seed=self.data.seed,
            full_contexts=settings.full_contexts,
        )
        self.source.block("train", 0, min(size, 256), self.data.seed)  # warm up
        batches: list[Batch] = []
        seconds = self.time(lambda: batches.extend(itertools.islice(stream, self.count)))
        self.batches, self.batch_seconds = batches, seconds / self.count
        self.sample = sum(t.numel() * t.itemsize for b in batches for t in b.acts.values())
        self._finish_seconds: dict[Any, float] = {}
        self._times_by_shape: dict[str, MemberTimes] = {}

    def time(self, call: Callable[[], Any]) -> float:
        """Return the seconds of a call, including its work on the device."""
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
        """Number of held-out activations, counted up to the largest number that is used."""
        limit = max(self.data.held_out_tokens, EXAMPLE_TOKENS)
        if (text := self.source.text_model()) is None:
            return limit
        count = 0
        for contexts in text.contexts("held_out"):
            count += int(contexts.position_mask.sum())
            if count >= limit:
                break
        return min(count, limit)

    def measure(self, config: TrainConfig) -> MemberTimes:
        """Return the times of a member, measured once for each shape.

        Members that differ only in settings such as learning rate and seed take the same time.
        """
        optim = config.optim
        shape = repr(
            (
                config.sparsity,
                config.site,
                [type(term) for term in config.losses],
                (optim.name, optim.moments, optim.clip_norm is None, optim.unit_norm),
                (config.sae_dtype, config.ema is None, config.accumulate, config.sparse_coding),
            )
        )
        if shape not in self._times_by_shape:
            self._times_by_shape[shape] = self._measure_shape(config)
        return self._times_by_shape[shape]

    def _measure_shape(self, config: TrainConfig) -> MemberTimes:
        data, steps = self.data, self.settings.steps
        learner = config.build_learner(self.source.widths, data.batch_size, steps).to(self.device)
        hooks = self.batches[0].acts
        learner.initialise({h: torch.cat([b.acts[h] for b in self.batches]) for h in hooks})
        # Time a step halfway through the schedules, and one of the first phase of sparse coding.
        step = first = self._step(learner, config, learner.start_step + learner.total_steps // 2)
        if learner.start_step:
            first = self._step(learner, config, learner.start_step // 2)
        model = learner.eval_model()
        fvu = FVU(learner.sae.d_out, self.device)
        firing = Firing(learner.sae.d_sae, self.device)

        def validate() -> None:
            for batch in self.batches[:2]:
                y, y_hat, codes = learner.predict(batch.acts, sae=model)
                fvu.update(y, y_hat)
                firing.update(codes)

        rows = sum(map(len, self.batches[:2]))
        validation = self.time(validate) * min(data.held_out_tokens, self.held_out) / rows
        key = (learner.sae.d_sae, type(config.sparsity))
        if key not in self._finish_seconds:
            self._finish_seconds[key] = self._finish(learner)
        saved = {"learner": learner.state_dict(), "optimiser": learner.optimizer.state_dict()}
        folder = self.settings.runs
        with tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else None) as folder:
            checkpoint = self.time(lambda: save_checkpoint(saved, Path(folder) / "pilot.ckpt"))
        return MemberTimes(first, step, validation, checkpoint, self._finish_seconds[key])

    def _step(self, learner: Learner, config: TrainConfig, number: int) -> float:
        """Return the mean seconds of repeating step `number`, after two to warm up."""
        batches = itertools.cycle(self.batches)

        def step() -> None:
            learner.steps = number
            micro = list(itertools.islice(batches, config.accumulate))
            learner.step(*[b.acts for b in micro], model_passes=[b.model_pass for b in micro])

        for _ in range(2):
            self.time(step)
        seconds: list[float] = []
        while len(seconds) < 5 or sum(seconds) < STEPS_SECONDS:
            seconds.append(self.time(step))
        learner.steps = number
        return sum(seconds) / len(seconds)

    @torch.no_grad()
    def _finish(self, learner: Learner) -> float:
        """Return the seconds of export, held-out metrics, downstream metrics and examples."""
        sae, source = learner.export(), self.source
        limit = min(self.data.held_out_tokens, self.held_out)
        if (text := source.text_model()) is None:
            return self.time(lambda: evaluate(sae, source, max_tokens=limit))
        mean = torch.zeros(sae.d_out, device=self.device)
        latents = []

        def held_out_metrics(tokens: int) -> None:
            evaluate(sae, source, max_tokens=tokens, downstream_tokens=0)

        def downstream_metrics(tokens: int) -> None:
            downstream(sae, text, mean=mean, max_tokens=tokens)

        def examples(tokens: int) -> None:
            latents[:] = top_examples(sae, text, max_tokens=tokens)

        parts = (
            (held_out_metrics, limit),
            (downstream_metrics, min(DOWNSTREAM_TOKENS, self.held_out)),
            (examples, min(EXAMPLE_TOKENS, self.held_out)),
        )
        seconds = sum(self._extrapolate(call, tokens) for call, tokens in parts)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "examples.jsonl"
            return seconds + self.time(lambda: write_examples(latents, file))

    def _extrapolate(self, call: Callable[[int], Any], tokens: int) -> float:
        """Return the seconds of call(tokens), extrapolated from two smaller calls."""
        if tokens <= MORE:
            return self.time(lambda: call(tokens))
        few = self.time(lambda: call(FEW))
        more = self.time(lambda: call(MORE))
        slope = (more - few) / (MORE - FEW)
        slope = min(max(slope, 0.5 * more / MORE), more / MORE)
        return more + slope * (tokens - MORE)

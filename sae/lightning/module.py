"""The LightningModule that trains one or several SAEs on one stream of activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from sae.activations import Batch
from sae.errors import UserError
from sae.lightning.datamodule import ActivationDataModule
from sae.lightning.loggers import log_row
from sae.training.member import Member
from sae.training.parallel_steps import ParallelSteps, faster_in_parallel

T = TypeVar("T")


class SAEModule(L.LightningModule):
    """SAEs, the *members* of a run, that train side by side on one stream.

    Members share nothing but the activations, so each ends with the same bits as when it is
    trained alone.

    Args:
        members: At least one, all with the same `accumulate`.

    Attributes:
        after_validation: Functions called with this module after each validation, when the
            held-out metrics of all members have been written.

    Raises:
        UserError: The members need different batches.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.after_validation: list[Callable[[SAEModule], None]] = []
        # nn.ModuleList has no element type, so type checkers are told that it is a sequence.
        self.members: Sequence[Member] = cast(Sequence[Member], nn.ModuleList(members))
        configs = [member.config for member in members]
        self.accumulate = _shared_value("model.accumulate", (c.accumulate for c in configs))
        self.full_contexts = _shared_value(
            "EndToEnd in model.losses", (c.full_contexts for c in configs)
        )
        # A step calls backward and the optimizers itself. Under automatic optimization Lightning
        # would run them, and divide and clone the loss, around every step.
        self.automatic_optimization = False
        self.steps = 0
        self.seconds = 0.0
        self._validated_at = 0
        self._parallel_steps, self._in_parallel = ParallelSteps(), False

    @property
    def live(self) -> list[Member]:
        """The members that still train."""
        return [member for member in self.members if member.live]

    @property
    def tokens(self) -> int:
        """Number of training activations that the stream has handed out."""
        return max(
            member.learner.tokens if member.stopped is None else member.stopped["tokens"]
            for member in self.members
        )

    @property
    def datamodule(self) -> ActivationDataModule:
        """The activations that the trainer trains on."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] (set by fit)

    @property
    def log_every(self) -> int:
        """Steps between two rows of training metrics."""
        return self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] (same)

    def setup(self, stage: str) -> None:
        data = self.datamodule.data
        for member in self.members:
            member.learner = member.config.build_learner(
                data.source.widths, data.batch_size, self.trainer.max_steps
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return CombinedOptimizer(self.members)

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()
        self._logged_at = (self.tokens, self.seconds)
        first_block = None
        if any(member.learner.scale is None for member in self.live):
            stream = self.datamodule.stream
            assert stream is not None  # Lightning calls `setup` of the data module first
            first_block = stream.first_block().to(self.device).acts
        for member in self.live:
            member.start(first_block)
        # Run sequentially on a GPU, and when members share the model's own forward passes.
        sequential = self.device.type != "cpu" or self.full_contexts
        batch = self.datamodule.data.batch_size * self.accumulate
        sizes = [batch * member.learner.sae.W_enc.numel() for member in self.live]
        self._in_parallel = not sequential and faster_in_parallel(sizes)
        self.validate_if_due()

    def training_step(self, batches: list[Batch], batch_idx: int) -> None:
        # One call per step of the stream, however many members train: Lightning counts the calls.
        advance = cast(LightningOptimizer, self.optimizers()).step
        for first in range(0, len(batches), self.accumulate):
            micro_batches = batches[first : first + self.accumulate]
            acts = [batch.acts for batch in micro_batches]
            options = {}  # a step recorded as a CUDA graph takes activations only
            if self.full_contexts:
                options["model_passes"] = [batch.model_pass for batch in micro_batches]
            jobs = [partial(member.step, *acts, **options) for member in self.live]
            advance(partial(self._run_jobs, jobs))
            self.steps += 1
            now = time.perf_counter()
            self.seconds, self._clock = self.seconds + now - self._clock, now
            last = self.steps == self.trainer.max_steps
            if self.steps % self.log_every == 0 or last:
                self._log_training_metrics()

    def _run_jobs(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run one job for each member, in parallel if that is faster."""
        return self._parallel_steps(jobs) if self._in_parallel else [job() for job in jobs]

    def teardown(self, stage: str) -> None:
        self._parallel_steps.close()

    def _log_training_metrics(self) -> None:
        """Write one row of training metrics for each member.

        This is the only place in training that reads numbers off the device.
        """
        tokens, seconds = self._logged_at
        elapsed = max(self.seconds - seconds, 1e-9)
        self._logged_at = (self.tokens, self.seconds)
        for member in self.live:
            member.last_metrics = {
                **member.pop_metrics(),
                "tokens": float(self.tokens),
                "seconds": self.seconds,
                "tokens_per_second": (self.tokens - tokens) / elapsed,
            }
            self._write_row(member, member.last_metrics)
        if not self.live:
            raise self.members[0].error()

    def _write_row(self, member: Member, row: dict[str, float]) -> None:
        """Write a row to the member's `metrics.csv` and to every logger.

        `self.log` would round each number to float32, and takes about 1,900 Python calls.
        """
        member.metrics_csv.add(row, step=self.steps)
        if len(self.members) > 1:
            row = {f"{member.name}/{key}": value for key, value in row.items()}
        log_row(self.trainer.loggers, row, self.steps)

    def on_validation_epoch_start(self) -> None:
        for member in self.live:
            member.start_validation(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._run_jobs([partial(member.validate_batch, batch.acts) for member in self.live])

    def on_validation_epoch_end(self) -> None:
        rows = self._write_held_out_metrics()
        if rows:  # for callbacks that watch a metric: of several members, the best one's
            best = min(rows, key=lambda row: row["held_out_fvu"])
            self.log_dict(best, logger=False)
        self._clock = time.perf_counter()  # time spent on validation is not training time

    def _write_held_out_metrics(self) -> list[dict[str, float]]:
        """Write the held-out metrics of all live members, and return them."""
        rows = {member: member.finish_validation() for member in self.live}
        if self.trainer.should_stop:  # Lightning validates once more when a run is stopped
            return []
        for member, row in rows.items():
            self._write_row(member, row)
        self._validated_at = self.steps
        for function in self.after_validation:
            function(self)
        return list(rows.values())

    @property
    def validate_every(self) -> int:
        """Steps between two validations."""
        return int(self.trainer.val_check_interval) * self.datamodule.steps_per_call

    @torch.inference_mode()
    def validate_if_due(self) -> None:
        """Validate now if a validation was due at this step and was not done.

        A checkpoint is written before the validation of its step, so a kill can come in between.
        """
        if not self.steps or self.steps % self.validate_every or self._validated_at == self.steps:
            return
        self.on_validation_epoch_start()
        for number, batch in enumerate(self.datamodule.val_dataloader()):
            self.validation_step(batch.to(self.device), number)
        self._write_held_out_metrics()
        self._clock = time.perf_counter()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            reason = " ".join(str(error).partition(":")[2].split())
            raise _wrong_checkpoint(reason.replace("torch.Size", "")) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "members": [member.state() for member in self.members],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint["run"]
        saved = [state["name"] for state in run["members"]]
        names = [member.name for member in self.members]
        if saved != names:
            raise _wrong_checkpoint(f"its members are {', '.join(saved)}, not {', '.join(names)}.")
        self.steps, self.seconds = run["steps"], run["seconds"]
        for member, state in zip(self.members, run["members"], strict=True):
            member.restore(state)


def _shared_value(setting: str, values: Iterable[T]) -> T:
    """Return the value that all members have for a setting that decides what a batch is.

    Raises UserError if they differ in it.
    """
    distinct = set(values)
    if len(distinct) > 1:
        raise UserError(
            f"members differ in {setting} ({', '.join(sorted(map(str, distinct)))}), which decides "
            "what a batch is; train them in separate runs"
        )
    return distinct.pop()


def _wrong_checkpoint(reason: str) -> UserError:
    return UserError(
        f"the checkpoint belongs to another run: {reason} Resume with the settings it was made with"
    )


class CombinedOptimizer(torch.optim.Optimizer):
    """The optimizers of all live members as the one optimizer that Lightning saves and counts.

    Each learner steps its own optimizer, so a step of this one only calls the closure it is given.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        super().__init__([p for member in members for p in member.parameters()], {})

    def step(self, closure: Callable[[], Any]) -> Any:
        return closure()

    def state_dict(self) -> dict[Any, Any]:
        return {
            number: member.learner.optimizer.state_dict()
            for number, member in enumerate(self.members)
            if member.live
        }

    def load_state_dict(self, state_dict: dict[Any, Any]) -> None:
        for number, state in state_dict.items():
            self.members[number].learner.optimizer.load_state_dict(state)

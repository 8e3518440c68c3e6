"""The LightningModule around the autoencoders of a run, one or many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import nn

from sae.activations import Batch
from sae.errors import UserError
from sae.lightning.loggers import log_row
from sae.training.member import Member
from sae.training.parallel_steps import ParallelSteps, worth


class SAEModule(L.LightningModule):
    """Autoencoders that learn from one stream, side by side: nothing of one enters another, so each
    ends with the bits that it would end with alone.

    Args:
        members: at least one; all with the same `accumulate`.

    Raises UserError where members need different batches.

    Attributes:
        after_validation: functions called with this module after each validation, when the
            held-out metrics of all members have been written.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.after_validation: list[Callable[[SAEModule], None]] = []
        self.members = nn.ModuleList(members)
        for name, says in (
            ("accumulate", "model.accumulate"),
            ("full_contexts", "EndToEnd in model.losses"),
        ):
            if len(found := {getattr(member.recipe, name) for member in members}) > 1:
                raise UserError(
                    f"members differ in {says} ({', '.join(map(str, sorted(found)))}), which "
                    "decides what a batch is; train them in runs of their own"
                )
        self.accumulate = members[0].recipe.accumulate
        self.full_contexts = members[0].recipe.full_contexts
        # A step calls backward and the optimisers itself; under automatic optimisation Lightning
        # would run them, and divide and clone the loss, around every step.
        self.automatic_optimization = False
        self.steps = 0
        self.seconds = 0.0
        self._judged_at = 0
        self._crew, self._in_crew = ParallelSteps(), False

    @property
    def live(self) -> list[Member]:
        """The members that still learn."""
        return [member for member in self.members if member.live]

    @property
    def tokens(self) -> int:
        """Activations that the stream has handed out for training."""
        return max(m.learner.tokens if m.live else m.stopped["tokens"] for m in self.members)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        for member in self.members:
            member.learner = member.recipe.build_learner(
                data.source.widths, data.batch_size, self.trainer.max_steps
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return CombinedOptimizer(self.members)

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()
        self._read_at = (self.tokens, self.seconds)
        first = None
        if any(member.learner.scale is None for member in self.live):
            first = self.trainer.datamodule.stream.first_block().to(self.device).acts
        for member in self.live:
            member.begin(first)
        # Of members that share the model's own passes, one at a time.
        alone = self.device.type != "cpu" or self.full_contexts
        batch = self.trainer.datamodule.batch_size * self.accumulate
        saes = [member.learner.sae for member in self.live]
        self._in_crew = not alone and worth([batch * sae.W_enc.numel() for sae in saes])
        self.make_up()

    def training_step(self, batches: list[Batch], batch_idx: int) -> None:
        # One call a step of the stream, however many learn from it: Lightning counts the calls.
        advance = self.optimizers().step
        for at in range(0, len(batches), self.accumulate):
            micro = batches[at : at + self.accumulate]
            runs = {"runs": [batch.run for batch in micro]} if self.full_contexts else {}
            acts = [batch.acts for batch in micro]

            jobs = [partial(member.step, *acts, **runs) for member in self.live]
            advance(partial(self._at_once, jobs))
            self.steps += 1
            now = time.perf_counter()
            self.seconds, self._clock = self.seconds + now - self._clock, now
            last = self.steps == self.trainer.max_steps
            if self.steps % self.trainer.log_every_n_steps == 0 or last:
                self._log()

    def _at_once(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Side by side where that is faster."""
        return self._crew(jobs) if self._in_crew else [job() for job in jobs]

    def teardown(self, stage: str) -> None:
        self._crew.close()

    def _log(self) -> None:
        """One row of metrics for each; the only place in training that reads numbers off the
        device."""
        tokens, seconds = self._read_at
        elapsed = max(self.seconds - seconds, 1e-9)
        self._read_at = (self.tokens, self.seconds)
        for member in self.live:
            member.last_read = {
                **member.read(),
                "tokens": float(self.tokens),
                "seconds": self.seconds,
                "tokens_per_second": (self.tokens - tokens) / elapsed,
            }
            self.write(member, member.last_read)
        if not self.live:
            raise self.members[0].error()

    def write(self, member: Member, row: dict[str, float]) -> None:
        """Hand a row to every logger. `self.log` would round each number to float32, and costs
        some 1,900 Python calls."""
        member.rows.add(row, step=self.steps)
        alone = len(self.members) == 1
        named = row if alone else {f"{member.name}/{key}": value for key, value in row.items()}
        log_row(self.trainer.loggers, named, self.steps)

    def on_validation_epoch_start(self) -> None:
        for member in self.live:
            member.start_judging(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._at_once([partial(member.judge, batch.acts) for member in self.live])

    def on_validation_epoch_end(self) -> None:
        judged = self._judged()
        if judged:  # for callbacks that watch a metric: of several members, the best
            best = min(judged, key=lambda row: row["held_out_fvu"])
            self.log_dict(best, logger=False)
        self._clock = time.perf_counter()  # time spent on held-out text is not training time

    def _judged(self) -> list[dict[str, float]]:
        """The held-out figures of all that learn, written down."""
        rows = {member: member.judged() for member in self.live}
        if self.trainer.should_stop:  # Lightning validates once more when a run is stopped
            return []
        for member, row in rows.items():
            self.write(member, row)
        self._judged_at = self.steps
        for function in self.after_validation:
            function(self)
        return list(rows.values())

    @property
    def validate_every(self) -> int:
        """Steps between two validations."""
        return self.trainer.val_check_interval * self.trainer.datamodule.steps_per_call

    @torch.inference_mode()
    def make_up(self) -> None:
        """Judge on held-out activations now, where that was due at the step of a checkpoint and
        was not done: the checkpoint of a step is written before, and a kill can come between."""
        if not self.steps or self.steps % self.validate_every or self._judged_at == self.steps:
            return
        self.on_validation_epoch_start()
        for number, batch in enumerate(self.trainer.datamodule.val_dataloader()):
            self.validation_step(batch.to(self.device), number)
        self._judged()
        self._clock = time.perf_counter()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            reason = " ".join(str(error).partition(":")[2].split())
            raise _of_another_run(reason.replace("torch.Size", "")) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "members": [member.state() for member in self.members],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint["run"]
        there, here = [state["name"] for state in run["members"]], [m.name for m in self.members]
        if there != here:
            raise _of_another_run(f"its members are {', '.join(there)}, not {', '.join(here)}.")
        self.steps, self.seconds = run["steps"], run["seconds"]
        for member, state in zip(self.members, run["members"], strict=True):
            member.restore(state)


def _of_another_run(reason: str) -> UserError:
    return UserError(
        f"the checkpoint is of another run: {reason} Resume with the settings it was made with"
    )


class CombinedOptimizer(torch.optim.Optimizer):
    """The optimisers of all members that learn, as the one that Lightning saves and counts by.

    Each learner calls its own; a step of this one is whatever closure it is given.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        super().__init__([p for member in members for p in member.parameters()], {})

    def step(self, closure: Callable[[], Any]) -> Any:
        return closure()

    def state_dict(self) -> dict[str, Any]:
        return {
            number: member.learner.optimizer.state_dict()
            for number, member in enumerate(self.members)
            if member.live
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for number, state in state_dict.items():
            self.members[number].learner.optimizer.load_state_dict(state)

"""Plan a run or a sweep: its memory, FLOPs and time by part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sae.activations import Source
from sae.planner.cost_model import GPU, Work, find_gpu, harvest_work, number_formats, step_work
from sae.planner.memory import MemoryEstimate, estimate_memory, fake_learner, shared_memory
from sae.planner.pilot import MemberTimes, Pilot
from sae.planner.system import age_seconds, resident_bytes
from sae.training.run_settings import RunSettings

MIB = 2**20
CALL_SECONDS = 0.7e-3  # overhead of Lightning per call of `training_step`
REPORT_SECONDS = 0.5  # for the page of one member
# Memory after the last step, beside a copy of the SAE: examples, the page and, if the source has
# text, a full forward pass of the model. 140 MiB were measured on MiniLM with 8,192 latents.
FINISH_BYTES = {True: 120 * MIB, False: 60 * MIB}


@dataclass(frozen=True)
class PlannedMember:
    """One SAE of a plan.

    Attributes:
        memory: Its memory.
        work: Work of a step by stage.
        times: Times of its parts; None before they are known.
        seconds: Time by part of the run.
    """

    memory: MemoryEstimate
    work: dict[str, Work]
    times: MemberTimes | None
    seconds: dict[str, float]

    @property
    def step_work(self) -> Work:
        """Work of a step."""
        return sum(self.work.values(), Work(0, 0))

    @property
    def step_seconds(self) -> float:
        """Time of a step; NaN before it is known."""
        return math.nan if self.times is None else self.times.step


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        members: Its SAEs by name.
        memory: Bytes by part, of the wave with the highest peak.
        peak: Peak memory in bytes.
        seconds: Time by part.
        harvest: Work of the model for one activation.
        tokens: Number of activations on which each member trains.
        waves: Number of waves, each with its own stream.
        gpu: Name of the GPU if times are calculated lower bounds; None if they are measured.
    """

    members: dict[str, PlannedMember]
    memory: dict[str, int]
    peak: int
    seconds: dict[str, float]
    harvest: Work
    tokens: int
    waves: int
    gpu: str | None

    @property
    def total(self) -> float:
        """Total time in seconds."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for JSON."""
        return {
            "parameters": sum(m.memory.parameter_count for m in self.members.values()),
            "peak_bytes": self.peak,
            "seconds": self.total,
            "gpu": self.gpu,
            "memory_bytes": self.memory,
            "seconds_by_part": self.seconds,
            "tokens": self.tokens,
            "waves": self.waves,
            "harvest_flops_per_token": self.harvest.flops,
            "members": {
                name: {
                    "parameters": m.memory.parameter_count,
                    "memory_bytes": asdict(m.memory),
                    "step": {stage: asdict(work) for stage, work in m.work.items()},
                    "step_seconds": None if m.times is None else m.times.step,
                    "seconds_by_part": m.seconds,
                }
                for name, m in self.members.items()
            },
        }


def make_plan(
    settings: RunSettings, gpu: str | None = None, waves: Sequence[Sequence[str]] | None = None
) -> Plan:
    """Plan a run.

    Args:
        settings: Settings of the run.
        gpu: Name of a GPU for which to calculate lower bounds; by default times are measured by a
            pilot on this machine.
        waves: Names of the members that train together, for each wave; by default all in one.

    Raises:
        UserError: If the GPU is unknown.
    """
    card = None if gpu is None else find_gpu(gpu)
    waves = waves or [list(settings.members)]
    data, steps = settings.data, settings.steps
    device = "cuda" if card else settings.device.type
    data.source.setup("cpu" if card else settings.device)
    members = {}
    for member, config in settings.members.items():
        shape = data.source.widths, data.batch_size, steps
        memory = estimate_memory(config, *shape, device)
        work = step_work(config, fake_learner(config, *shape), memory, data.batch_size)
        members[member] = PlannedMember(memory, work, None, {})
    first = next(iter(settings.members.values()))
    tokens = steps * first.accumulate * data.batch_size
    harvest = harvest_work(data.source)
    if card is not None:
        seconds, members = _lower_bounds(settings, members, harvest, card, len(waves))
        base = _model_bytes(data.source)
    else:
        age = age_seconds()
        pilot = Pilot(settings)
        base = _model_bytes(data.source) if device == "cuda" else resident_bytes() - pilot.sample
        seconds, members = _measure(settings, members, pilot, age, len(waves))
    per_wave = [
        _memory_by_part(settings, [members[name].memory for name in wave], base, device)
        for wave in waves
    ]
    by_part, peak = max(per_wave, key=lambda wave: wave[1])
    return Plan(members, by_part, peak, seconds, harvest, tokens, len(waves), gpu)


def _memory_by_part(
    settings: RunSettings, members: list[MemoryEstimate], base: int, device: str
) -> tuple[dict[str, int], int]:
    """Return the bytes of a wave by part, and their peak.

    The peak is at the start, where a block is measured in float64, in a step, or at the end.
    """
    data = settings.data
    shared = shared_memory(settings, settings.full_contexts, device)
    rows = data.batch_size * data.block_batches
    float64_block = 8 * rows * max(data.source.widths.values())
    total = lambda part: sum(getattr(member, part) for member in members)
    persistent = total("persistent")
    # Lightning requests the held-out batches before the first step.
    start = total("parameters") + total("average") + total("counters") + float64_block
    start += shared.block + shared.held_out
    step = persistent + shared.total + max(member.step for member in members)
    has_text = data.source.text_model() is not None
    finish = (
        persistent
        + shared.held_out
        + max(member.export for member in members)
        + FINISH_BYTES[has_text]
    )
    peak = base + max(start, step, finish)
    memory = {
        "process, libraries and model": base,
        "activations": shared.total,
        "parameters": total("parameters"),
        "gradients": total("gradients"),
        "optimizer": total("optimizer"),
        "averages and counters": total("average") + total("counters"),
    }
    return memory | {"temporary, at most": peak - sum(memory.values())}, peak


def _measure(
    settings: RunSettings, members: dict[str, PlannedMember], pilot: Pilot, age: float, waves: int
) -> tuple[dict[str, float], dict[str, PlannedMember]]:
    """Return the measured time by part, and the members with their times."""
    data, steps = settings.data, settings.steps
    checkpoints = math.ceil(steps / settings.checkpoint_every)
    validations = steps // settings.validate_every
    timed = {}
    for name, member in members.items():
        config = settings.members[name]
        times = pilot.measure(config)
        coding = config.sparse_coding
        start_step = 0 if coding is None else round(coding.share * steps)
        seconds = {
            "steps": start_step * times.first_step + (steps - start_step) * times.step,
            "validation": validations * times.validation,
            "checkpoints": checkpoints * times.checkpoint,
            "metrics, examples and page": times.finish + REPORT_SECONDS,
        }
        timed[name] = PlannedMember(member.memory, member.work, times, seconds)
    batches = steps * next(iter(settings.members.values())).accumulate
    if not pilot.batches[0].model_pass:  # blocks are always harvested completely
        batches = math.ceil(batches / data.block_batches) * data.block_batches
    held_out = min(data.held_out_tokens, pilot.held_out)
    total = lambda part: sum(member.seconds[part] for member in timed.values())
    seconds = {
        "start": age,
        "harvest": waves * pilot.batch_seconds * (batches + held_out / data.batch_size),
        "steps": total("steps") + waves * CALL_SECONDS * steps / settings.steps_per_call,
        "validation": total("validation"),
        "checkpoints": total("checkpoints"),
        "metrics, examples and page": total("metrics, examples and page"),
    }
    if pilot.device.type == "cuda":  # a GPU trains on one block while the next is harvested
        seconds["harvest"] = max(0.0, seconds["harvest"] - seconds["steps"])
    return seconds, timed


def _lower_bounds(
    settings: RunSettings, members: dict[str, PlannedMember], harvest: Work, gpu: GPU, waves: int
) -> tuple[dict[str, float], dict[str, PlannedMember]]:
    """Return lower bounds on the time by part: every stage at peak rates, without gaps."""
    steps, bounded, rows = settings.steps, {}, 0
    for name, member in members.items():
        config = settings.members[name]
        kernels, model = number_formats(config, settings.data.source)
        step = sum(work.seconds(gpu, kernels) for work in member.work.values())
        rows = steps * config.accumulate * settings.data.batch_size
        times = MemberTimes(step, step, 0.0, 0.0, 0.0)
        seconds = {"steps": steps * step}
        bounded[name] = PlannedMember(member.memory, member.work, times, seconds)
    return {
        "harvest": harvest.times(waves * rows).seconds(gpu, model),
        "steps": sum(member.seconds["steps"] for member in bounded.values()),
    }, bounded


def _model_bytes(source: Source) -> int:
    text = source.text_model()
    return 0 if text is None else sum(p.numel() * p.itemsize for p in text.model.model.parameters())

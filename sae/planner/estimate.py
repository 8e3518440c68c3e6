"""What a run or a sweep takes, by part: bytes, FLOPs, seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sae.activations import Source
from sae.planner.cost_model import GPU, Work, harvest_work, kinds, named_gpu, step_work
from sae.planner.memory import MemoryEstimate, needs_of, shape_of, shared_of
from sae.planner.pilot import Pilot, Timed
from sae.planner.process import age_seconds, resident_bytes
from sae.training.run_settings import RunSettings

MIB = 2**20
CALL_SECONDS = 0.7e-3  # Lightning's, for each call of `training_step`
REPORT_SECONDS = 0.5  # of one member's page
# What finishing takes besides a copy of the SAE: tables and text of examples, the page, and the
# model run to its end. 140 MiB on MiniLM with 8,192 latents.
FINISH = {True: 120 * MIB, False: 60 * MIB}


@dataclass(frozen=True)
class Member:
    """One member of a plan: bytes, FLOPs of a step, and seconds of its parts where measured."""

    needs: MemoryEstimate
    work: dict[str, Work]
    timed: Timed | None
    seconds: dict[str, float]

    @property
    def step_work(self) -> Work:
        return sum(self.work.values(), Work(0, 0))


@dataclass(frozen=True)
class Plan:
    """Of a run.

    Attributes:
        members: by name.
        memory: bytes by part; `peak` is of those that are there at once.
        peak: bytes.
        seconds: by part.
        harvest: work of one activation.
        tokens: activations that each member learns from.
        waves: how many streams there are, one after the other.
        gpu: its name, where times are a floor by arithmetic and not measured.
    """

    members: dict[str, Member]
    memory: dict[str, int]
    peak: int
    seconds: dict[str, float]
    harvest: Work
    tokens: int
    waves: int
    gpu: str | None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def figures(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "parameters": sum(m.needs.count for m in self.members.values()),
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
                    "parameters": m.needs.count,
                    "memory_bytes": asdict(m.needs),
                    "step": {stage: asdict(work) for stage, work in m.work.items()},
                    "step_seconds": None if m.timed is None else m.timed.step,
                    "seconds_by_part": m.seconds,
                }
                for name, m in self.members.items()
            },
        }


def planned(
    settings: RunSettings, gpu: str | None = None, waves: Sequence[Sequence[str]] | None = None
) -> Plan:
    """Count, and measure where no GPU is named. `waves`: the members that train at once, all when
    left out; each wave has a stream of its own.

    Raises UserError for a GPU that is not known.
    """
    card = None if gpu is None else named_gpu(gpu)
    waves = waves or [list(settings.members)]
    data, steps = settings.data, settings.steps
    device = "cuda" if card else settings.device.type
    data.source.setup("cpu" if card else settings.device)
    members = {}
    for member, recipe in settings.members.items():
        shape = data.source.widths, data.batch_size, steps
        needs = needs_of(recipe, *shape, device)
        work = step_work(recipe, shape_of(recipe, *shape), needs, data.batch_size)
        members[member] = Member(needs, work, None, {})
    first = next(iter(settings.members.values()))
    tokens = steps * first.accumulate * data.batch_size
    harvest = harvest_work(data.source)
    if card is not None:
        seconds, members = _floor(settings, members, harvest, card, len(waves))
        base = _model_bytes(data.source)
    else:
        age = age_seconds()
        pilot = Pilot(settings)
        base = _model_bytes(data.source) if device == "cuda" else resident_bytes() - pilot.sample
        seconds, members = _measured(settings, members, pilot, age, len(waves))
    each = [_memory(settings, [members[n].needs for n in wave], base, device) for wave in waves]
    memory, peak = max(each, key=lambda found: found[1])
    return Plan(members, memory, peak, seconds, harvest, tokens, len(waves), gpu)


def _memory(
    settings: RunSettings, needs: list[MemoryEstimate], base: int, device: str
) -> tuple[dict[str, int], int]:
    """Bytes by part of a wave, and the most at once: at the start, where a block is measured in
    float64, in a step, or at the end."""
    data = settings.data
    whole = any(recipe.full_contexts for recipe in settings.members.values())
    shared = shared_of(settings, whole, device)
    rows = data.batch_size * data.block_batches
    measuring = 8 * rows * max(data.source.widths.values())
    of = lambda part: sum(getattr(one, part) for one in needs)
    kept = sum(one.kept for one in needs)
    # Lightning asks for the held-out batches before the first step.
    start = of("parameters") + of("average") + of("counters") + measuring
    start += shared.block + shared.held_out
    step = kept + shared.total + max(one.step for one in needs)
    text = data.source.text_model() is not None
    finish = kept + shared.held_out + max(one.export for one in needs) + FINISH[text]
    peak = base + max(start, step, finish)
    memory = {
        "process, libraries and model": base,
        "activations": shared.total,
        "parameters": of("parameters"),
        "gradients": of("gradients"),
        "optimiser": of("optimiser"),
        "averages and counters": of("average") + of("counters"),
    }
    return memory | {"temporary, at the most": peak - sum(memory.values())}, peak


def _measured(
    settings: RunSettings, members: dict[str, Member], pilot: Pilot, age: float, waves: int
) -> tuple[dict[str, float], dict[str, Member]]:
    data, steps = settings.data, settings.steps
    checkpoints = math.ceil(steps / settings.checkpoint_every)
    validations = steps // settings.validate_every
    found = {}
    for name, member in members.items():
        recipe = settings.members[name]
        timed = pilot.member(recipe)
        coding = recipe.sparse_coding
        start_step = 0 if coding is None else round(coding.share * steps)
        seconds = {
            "steps": start_step * timed.first + (steps - start_step) * timed.step,
            "validation": validations * timed.validation,
            "checkpoints": checkpoints * timed.checkpoint,
            "figures, examples and page": timed.finish + REPORT_SECONDS,
        }
        found[name] = Member(member.needs, member.work, timed, seconds)
    batches = steps * next(iter(settings.members.values())).accumulate
    if not pilot.batches[0].run:  # a block is harvested whole
        batches = math.ceil(batches / data.block_batches) * data.block_batches
    held_out = min(data.held_out_tokens, pilot.held_out)
    of = lambda part: sum(member.seconds[part] for member in found.values())
    seconds = {
        "start": age,
        "harvest": waves * pilot.batch_seconds * (batches + held_out / data.batch_size),
        "steps": of("steps") + waves * CALL_SECONDS * steps / settings.steps_per_call,
        "validation": of("validation"),
        "checkpoints": of("checkpoints"),
        "figures, examples and page": of("figures, examples and page"),
    }
    if pilot.device.type == "cuda":  # there a block is harvested while the last is learnt from
        seconds["harvest"] = max(0.0, seconds["harvest"] - seconds["steps"])
    return seconds, found


def _floor(
    settings: RunSettings, members: dict[str, Member], harvest: Work, gpu: GPU, waves: int
) -> tuple[dict[str, float], dict[str, Member]]:
    """Seconds that a GPU takes at the least: every stage at its peak, and nothing between."""
    steps, found, rows = settings.steps, {}, 0
    for name, member in members.items():
        recipe = settings.members[name]
        kernels, model = kinds(recipe, settings.data.source)
        step = sum(work.seconds(gpu, kernels) for work in member.work.values())
        rows = steps * recipe.accumulate * settings.data.batch_size
        timed = Timed(step, step, 0.0, 0.0, 0.0)
        found[name] = Member(member.needs, member.work, timed, {"steps": steps * step})
    return {
        "harvest": harvest.times(waves * rows).seconds(gpu, model),
        "steps": sum(member.seconds["steps"] for member in found.values()),
    }, found


def _model_bytes(source: Source) -> int:
    text = source.text_model()
    return 0 if text is None else sum(p.numel() * p.itemsize for p in text.model.model.parameters())

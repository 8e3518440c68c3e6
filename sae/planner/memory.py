"""How much memory the members of a run take, before anything is built, and how many fit at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch._subclasses import FakeTensorMode

from sae.activations import ActivationData
from sae.errors import UserError
from sae.planner.system import free_bytes
from sae.training import Learner
from sae.training.parallel_steps import worth
from sae.training.row_adam import RowAdam
from sae.training.run_settings import RunSettings
from sae.training.schedule_free import ScheduleFreeSign
from sae.training.train_config import TrainConfig

GIB = 2**30
SHARE = 0.8
"""Of the memory that is free, what a sweep takes when it is not told."""

# Peaks of whole steps (README, "What a step costs") less parameters and moments, three shapes: 60,
# 113 and 115 MiB. This many MiB of libraries' scratch, two chunks of pre-activations, and so many
# tensors [batch, d] give 56, 108 and 104.
SCRATCH = 20 * 2**20
CHUNK_ELEMENTS, CHUNK_ROWS = {"cpu": 2**21, "cuda": 2**26}, 160
ROW_TENSORS = 9
SLOT_BYTES = 64  # of one firing latent of one row: values, gradients, indices and their orders


@dataclass(frozen=True)
class Shared:
    """Bytes that all members of a run share, beside the model."""

    block: int
    batch: int
    held_out: int
    logits: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class MemoryEstimate:
    """What one member takes, in bytes; `count` is of its parameters.

    `step` and `export` come and go.
    """

    count: int
    parameters: int
    gradients: int
    optimiser: int
    average: int
    counters: int
    step: int
    export: int

    @property
    def kept(self) -> int:
        """As long as it trains."""
        return sum((self.parameters, self.gradients, self.optimiser, self.average, self.counters))

    @property
    def passing(self) -> int:
        return max(self.step, self.export)


def shape_of(
    recipe: TrainConfig, widths: Mapping[str, int], batch_size: int, steps: int
) -> Learner:
    """The learner of a recipe whose tensors have shapes and no memory."""
    with FakeTensorMode():
        return recipe.build_learner(widths, batch_size, max(steps, 1))


def needs_of(
    recipe: TrainConfig, widths: Mapping[str, int], batch_size: int, steps: int, device: str = "cpu"
) -> MemoryEstimate:
    """What a recipe takes on hooks of these widths, {hook: width}. Exact but for `step`, which is
    an estimate. Raises UserError where the recipe does not fit the hooks."""
    learner = shape_of(recipe, widths, batch_size, steps)
    sae = learner.sae
    params = [param for param in learner.parameters() if param.requires_grad]
    parameters = [*sae.parameters(), *sae.buffers()]
    average = [] if learner.average is None else list(learner.average.buffers())
    others = {id(tensor) for tensor in (*parameters, *average)}
    counters = [b for b in learner.buffers() if id(b) not in others]
    return MemoryEstimate(
        count=sum(param.numel() for param in sae.parameters()),
        parameters=_bytes(parameters),
        gradients=_bytes([p for p in params if _whole_gradient(recipe, learner, p)]),
        optimiser=sum(optimiser_bytes(learner.optimizer, param) for param in params),
        average=_bytes(average),
        counters=_bytes(counters),
        step=_step_bytes(recipe, learner, batch_size, device),
        # A copy with the scales folded in; while it is made there are its random start and that of
        # its transpose besides.
        export=3 * _bytes(parameters),
    )


def firing(recipe: TrainConfig) -> float:
    """Return the largest L0 to expect at any time in the run."""
    return recipe.sparsity.peak_l0


def optimiser_bytes(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> int:
    """What an optimiser keeps of one parameter, in bytes."""
    wide = torch.promote_types(param.dtype, torch.float32).itemsize
    if isinstance(optimizer, RowAdam):
        master = wide if wide != param.itemsize else 0
        moment = wide if optimizer.moments is None else optimizer.moments.itemsize
        return param.numel() * (2 * moment + master)
    if isinstance(optimizer, ScheduleFreeSign):
        return param.numel() * 2 * wide
    (group,) = (g for g in optimizer.param_groups if any(p is param for p in g["params"]))
    return param.numel() * param.itemsize * (1 if group["by_muon"] else 2)


def shared_of(settings: RunSettings, whole: bool, device: str = "cpu") -> Shared:
    """What the stream holds; the source is set up. `whole`: whether a term runs the model on."""
    data, source = settings.data, settings.data.source
    row = sum(source.widths.values()) * source.activation_dtype.itemsize
    row += 8 * len(source.provenance_columns)
    text = source.text_model()
    blocks = 2 if device == "cuda" else 1  # there the next is harvested meanwhile
    block_rows = data.batch_size * data.block_batches
    calls = settings.steps_per_call * data.accumulate
    return Shared(
        block=blocks * block_rows * (row + 8),  # and the order it is handed out in
        batch=2 * calls * data.batch_size * row,
        held_out=data.held_out_tokens * row,
        # Two distributions over all tokens, their logarithms, and gradients of one.
        logits=6 * 4 * data.batch_size * len(text.model.tokenizer) if whole and text else 0,
    )


def waves_for(settings: RunSettings, gib: float | None) -> tuple[list[list[str]], str]:
    """Names of the members in waves that fit into memory, in their order, and a line that says it.

    Sets up the source (a model is loaded, and stays).

    Args:
        gib: GiB that a wave may take; `SHARE` of what is free when left out.

    Raises UserError when one member does not fit alone.
    """
    data, device = settings.data, settings.device
    data.source.setup(device)
    widths, steps = data.source.widths, settings.steps
    needs = {
        name: needs_of(recipe, widths, data.batch_size, steps, device.type)
        for name, recipe in settings.members.items()
    }
    whole = any(recipe.full_contexts for recipe in settings.members.values())
    shared = shared_of(settings, whole, device.type).total
    free = free_bytes(device)
    allowed = SHARE * free if gib is None else gib * GIB
    have = f"{free / GIB:.1f} GiB are free" if gib is None else f"{gib:g} GiB are allowed"
    for name, one in needs.items():
        if shared + one.kept + one.passing > allowed:
            raise _too_large(name, settings.members[name], one, data, shared, have)
    # Steps that run side by side (`Crew`).
    # Half of the parameters, or so, are the encoder's.
    rows = data.batch_size * data.accumulate
    side_by_side = worth([rows * one.count // 2 for one in needs.values()])
    cpu = device.type == "cpu" and not whole
    at_once = torch.get_num_threads() if cpu and side_by_side else 1
    waves: list[list[str]] = []
    for name in needs:
        wave = [*waves[-1], name] if waves else [name]
        if waves and shared + _together([needs[n] for n in wave], at_once) <= allowed:
            waves[-1] = wave
        else:
            waves.append([name])
    total = (shared + _together(list(needs.values()), at_once)) / GIB
    members = f"{len(needs)} members take" if len(needs) > 1 else "1 member takes"
    most = max(map(len, waves))
    split = "one wave" if len(waves) == 1 else f"{len(waves)} waves of at most {most}"
    return waves, f"{members} about {_gib(total)} GiB, {have}: {split}"


def _together(members: list[MemoryEstimate], at_once: int) -> int:
    passing = sorted((one.passing for one in members), reverse=True)
    return sum(one.kept for one in members) + sum(passing[:at_once])


def _whole_gradient(recipe: TrainConfig, learner: Learner, param: torch.Tensor) -> bool:
    """Whether a step makes a gradient as large as this parameter; else it comes in parts."""
    sae = learner.sae
    if not isinstance(learner.optimizer, RowAdam):
        return True
    if param is not sae.W_enc and param is not sae.W_dec:
        return True
    unrolled = recipe.sparsity.unrolled_layers > 0
    if param is sae.W_enc:
        return unrolled or sae.site.groups > 1
    full = any(term.full_decoder_gradient for term in recipe.losses)
    return full or (unrolled and sae.reconstructs_input)


def _step_bytes(recipe: TrainConfig, learner: Learner, batch_size: int, device: str) -> int:
    """What a step makes and drops, by the constants above."""
    sae = learner.sae
    d_in, batches = sae.d_in * sae.site.groups, recipe.accumulate
    rows = batches * batch_size * (d_in + sae.d_out) / 2 * 4 * ROW_TENSORS
    slots = batches * batch_size * firing(recipe) * SLOT_BYTES
    chunk = 2 * 4 * max(CHUNK_ELEMENTS[device], CHUNK_ROWS * sae.d_sae)
    listed = min(sae.d_sae, max((term.max_dead_latents(sae) for term in recipe.losses), default=0))
    listed *= 2 * (sae.d_in + sae.d_out) * 4
    matrix = sae.d_sae * max(sae.d_in, sae.d_out) * 4
    update = {RowAdam: 0, ScheduleFreeSign: 2 * matrix}.get(type(learner.optimizer), 3 * matrix)
    return math.ceil(SCRATCH + rows + slots + chunk + listed + update)


def _too_large(
    name: str,
    recipe: TrainConfig,
    one: MemoryEstimate,
    data: ActivationData,
    shared: int,
    have: str,
) -> UserError:
    if shared > one.kept + one.passing:
        rows = data.batch_size * data.block_batches
        return UserError(
            f"data.block_batches={data.block_batches}: a block of {rows:,} activations and what "
            f"else the stream holds take about {_gib(shared / GIB)} GiB, {have}; lower it"
        )
    return UserError(
        f"model.sae.d_sae={recipe.sparsity.d_sae} of {name} takes about "
        f"{_gib((shared + one.kept + one.passing) / GIB)} GiB, {have}; lower it, or free memory"
    )


def _gib(gib: float) -> str:
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2f}"


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

"""Estimate the memory of a run before anything is built, and pack members into waves that fit.

A member is one SAE of a run that trains several on the same activations. Members that do not fit
into memory together train in waves, one after the other.
"""

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
from sae.training.parallel_steps import faster_in_parallel
from sae.training.row_adam import RowAdam
from sae.training.run_settings import RunSettings
from sae.training.schedule_free import ScheduleFreeSign
from sae.training.train_config import TrainConfig

GIB = 2**30
DEFAULT_SHARE = 0.8
"""Share of the free memory that a wave may take by default."""

# Measured peaks of whole steps at three shapes, without parameters and moments, are 60, 113 and 115
# MiB. These constants (libraries' scratch, two chunks of pre-activations, a number of tensors of
# shape [batch, d]) give 56, 108 and 104 MiB.
SCRATCH = 20 * 2**20
CHUNK_ELEMENTS, CHUNK_ROWS = {"cpu": 2**21, "cuda": 2**26}, 160
ROW_TENSORS = 9
SLOT_BYTES = 64  # per firing latent of a row: values, gradients, indices and their orders


@dataclass(frozen=True)
class SharedMemory:
    """Bytes that all members of a run share, apart from the model.

    Attributes:
        block: Blocks of activations.
        batch: Batches in use.
        held_out: Held-out activations.
        logits: Distributions over tokens, for losses that run the model.
    """

    block: int
    batch: int
    held_out: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of one member, in bytes.

    Attributes:
        parameter_count: Number of parameters, not bytes.
        parameters: Parameters and buffers of the SAE.
        gradients: Gradients that are as large as their parameters.
        optimizer: State of the optimizer.
        average: Running average of the weights.
        counters: Counters of dead latents and the like.
        step: Temporary tensors of a step (an estimate; all other parts are exact).
        export: Temporary tensors while the SAE is exported.
    """

    parameter_count: int
    parameters: int
    gradients: int
    optimizer: int
    average: int
    counters: int
    step: int
    export: int

    @property
    def persistent(self) -> int:
        """Bytes in use during the whole training."""
        return sum((self.parameters, self.gradients, self.optimizer, self.average, self.counters))

    @property
    def temporary(self) -> int:
        """The most bytes in use for a moment, beside the persistent ones."""
        return max(self.step, self.export)


def fake_learner(
    config: TrainConfig, widths: Mapping[str, int], batch_size: int, steps: int
) -> Learner:
    """Build a learner whose tensors have shapes but take no memory."""
    with FakeTensorMode():
        return config.build_learner(widths, batch_size, max(steps, 1))


def estimate_memory(
    config: TrainConfig, widths: Mapping[str, int], batch_size: int, steps: int, device: str = "cpu"
) -> MemoryEstimate:
    """Estimate the memory of a member.

    Args:
        config: Settings of the member.
        widths: Width of each hook.
        batch_size: Activations per batch.
        steps: Length of the run.
        device: cpu or cuda.

    Raises:
        UserError: If the settings do not fit the hooks.
    """
    learner = fake_learner(config, widths, batch_size, steps)
    sae = learner.sae
    params = [param for param in learner.parameters() if param.requires_grad]
    parameters = [*sae.parameters(), *sae.buffers()]
    average = [] if learner.average is None else list(learner.average.buffers())
    others = {id(tensor) for tensor in (*parameters, *average)}
    counters = [b for b in learner.buffers() if id(b) not in others]
    return MemoryEstimate(
        parameter_count=sum(param.numel() for param in sae.parameters()),
        parameters=_bytes(parameters),
        gradients=_bytes([p for p in params if _has_dense_gradient(config, learner, p)]),
        optimizer=sum(optimizer_bytes(learner.optimizer, param) for param in params),
        average=_bytes(average),
        counters=_bytes(counters),
        step=_step_bytes(config, learner, batch_size, device),
        # The exported copy, and while it is made, its random initial weights and their transpose.
        export=3 * _bytes(parameters),
    )


def optimizer_bytes(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> int:
    """Return the bytes of the optimizer's state for one parameter."""
    wide = torch.promote_types(param.dtype, torch.float32).itemsize
    if isinstance(optimizer, RowAdam):
        master = wide if wide != param.itemsize else 0
        moment = wide if optimizer.moments is None else optimizer.moments.itemsize
        return param.numel() * (2 * moment + master)
    if isinstance(optimizer, ScheduleFreeSign):
        return param.numel() * 2 * wide
    (group,) = (g for g in optimizer.param_groups if any(p is param for p in g["params"]))
    return param.numel() * param.itemsize * (1 if group["by_muon"] else 2)


def shared_memory(settings: RunSettings, full_contexts: bool, device: str = "cpu") -> SharedMemory:
    """Return the memory of the stream of a run.

    Args:
        settings: Settings of the run; its source is set up.
        full_contexts: Whether a loss term runs the model on full contexts.
        device: cpu or cuda.
    """
    data, source = settings.data, settings.data.source
    row = sum(source.widths.values()) * source.activation_dtype.itemsize
    row += 8 * len(source.provenance_columns)
    text = source.text_model()
    blocks = 2 if device == "cuda" else 1  # on a GPU the next block is harvested meanwhile
    block_rows = data.batch_size * data.block_batches
    calls = settings.steps_per_call * data.accumulate
    return SharedMemory(
        block=blocks * block_rows * (row + 8),  # 8 bytes for the order of a row
        batch=2 * calls * data.batch_size * row,
        held_out=data.held_out_tokens * row,
        # Two distributions over all tokens, their logarithms, and the gradients of one.
        logits=6 * 4 * data.batch_size * len(text.model.tokenizer) if full_contexts and text else 0,
    )


def pack_waves(settings: RunSettings, gib: float | None) -> tuple[list[list[str]], str]:
    """Pack the members of a run, in their order, into waves that fit into memory.

    Sets up the source, which loads its model.

    Args:
        settings: Settings of a run of all members.
        gib: GiB that a wave may take; by default `DEFAULT_SHARE` of the free memory.

    Returns:
        The names of the members of each wave, and a line about them to print.

    Raises:
        UserError: If a member does not fit on its own.
    """
    data, device = settings.data, settings.device
    data.source.setup(device)
    widths, steps = data.source.widths, settings.steps
    estimates = {
        name: estimate_memory(config, widths, data.batch_size, steps, device.type)
        for name, config in settings.members.items()
    }
    shared = shared_memory(settings, settings.full_contexts, device.type).total
    free = free_bytes(device)
    allowed = DEFAULT_SHARE * free if gib is None else gib * GIB
    limit = f"{free / GIB:.1f} GiB are free" if gib is None else f"{gib:g} GiB are allowed"
    for name, estimate in estimates.items():
        if shared + estimate.persistent + estimate.temporary > allowed:
            raise _too_large(name, settings.members[name], estimate, data, shared, limit)
    # Members whose steps run in parallel have their temporary tensors at the same time. About half
    # of the parameters belong to the encoder.
    rows = data.batch_size * data.accumulate
    parallel = faster_in_parallel([rows * e.parameter_count // 2 for e in estimates.values()])
    parallel = parallel and device.type == "cpu" and not settings.full_contexts
    at_once = torch.get_num_threads() if parallel else 1
    waves: list[list[str]] = []
    for name in estimates:
        wave = [*waves[-1], name] if waves else [name]
        if waves and shared + _total_bytes([estimates[n] for n in wave], at_once) <= allowed:
            waves[-1] = wave
        else:
            waves.append([name])
    total = (shared + _total_bytes(list(estimates.values()), at_once)) / GIB
    members = f"{len(estimates)} members take" if len(estimates) > 1 else "1 member takes"
    most = max(map(len, waves))
    split = "one wave" if len(waves) == 1 else f"{len(waves)} waves of at most {most}"
    return waves, f"{members} about {_gib(total)} GiB, {limit}: {split}"


def _total_bytes(members: list[MemoryEstimate], at_once: int) -> int:
    """Return the bytes of members of which `at_once` take a step at the same time."""
    temporary = sorted((member.temporary for member in members), reverse=True)
    return sum(member.persistent for member in members) + sum(temporary[:at_once])


def _has_dense_gradient(config: TrainConfig, learner: Learner, param: torch.Tensor) -> bool:
    """Return whether a step makes a gradient as large as this parameter, not one in parts."""
    sae = learner.sae
    if not isinstance(learner.optimizer, RowAdam):
        return True
    if param is not sae.W_enc and param is not sae.W_dec:
        return True
    unrolled = config.sparsity.unrolled_layers > 0
    if param is sae.W_enc:
        return unrolled or sae.site.groups > 1
    full = any(term.full_decoder_gradient for term in config.losses)
    return full or (unrolled and sae.reconstructs_input)


def _step_bytes(config: TrainConfig, learner: Learner, batch_size: int, device: str) -> int:
    """Return the bytes of the temporary tensors of a step, by the constants above."""
    sae = learner.sae
    d_in, batches = sae.d_in * sae.site.groups, config.accumulate
    rows = batches * batch_size * (d_in + sae.d_out) / 2 * 4 * ROW_TENSORS
    slots = batches * batch_size * config.sparsity.peak_l0 * SLOT_BYTES
    chunk = 2 * 4 * max(CHUNK_ELEMENTS[device], CHUNK_ROWS * sae.d_sae)
    dead = min(sae.d_sae, max((term.max_dead_latents(sae) for term in config.losses), default=0))
    dead *= 2 * (sae.d_in + sae.d_out) * 4
    matrix = sae.d_sae * max(sae.d_in, sae.d_out) * 4
    update = {RowAdam: 0, ScheduleFreeSign: 2 * matrix}.get(type(learner.optimizer), 3 * matrix)
    return math.ceil(SCRATCH + rows + slots + chunk + dead + update)


def _too_large(
    name: str,
    config: TrainConfig,
    estimate: MemoryEstimate,
    data: ActivationData,
    shared: int,
    limit: str,
) -> UserError:
    if shared > estimate.persistent + estimate.temporary:
        rows = data.batch_size * data.block_batches
        return UserError(
            f"data.block_batches={data.block_batches}: a block of {rows:,} activations and the "
            f"rest of the stream take about {_gib(shared / GIB)} GiB, {limit}; lower it"
        )
    return UserError(
        f"model.sae.d_sae={config.sparsity.d_sae} of {name} takes about "
        f"{_gib((shared + estimate.persistent + estimate.temporary) / GIB)} GiB, {limit}; "
        "lower it, or free memory"
    )


def _gib(gib: float) -> str:
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2f}"


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

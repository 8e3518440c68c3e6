"""Agreement between members of a run that differ only in their seed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.table import Table

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.evaluation.consensus import consensus
from sae.evaluation.evaluate import evaluate
from sae.lightning.datamodule import ActivationDataModule
from sae.lightning.loggers import log_row
from sae.lightning.module import SAEModule
from sae.metrics.decoder_directions import mmcs_of_latents
from sae.metrics.firing import Firing
from sae.metrics.registry import find_metric, find_metrics
from sae.metrics.seed_consistency import agreement, pw_mcc_signed, pw_mcc_signed_chance
from sae.runs.metrics_csv import MetricsCSV
from sae.training.member import Member

# Matching two dictionaries takes 0.05, 0.4, 2.3 and 11 s of a CPU for 1,024, 2,048, 4,096 and 8,192
# latents that have little in common, and half to a third of that where nine in ten are shared: some
# d_sae^2.7. With 1,000 steps between two validations on that CPU, this much is 3% to 5% of them.
LIVE = 2 * 4096**3  # pairs of seeds times d_sae^3
# A table of cosines is d_sae^2 doubles: 2 GiB.
MOST = 16_384

_SEED = re.compile(r"(^|,)(model\.)?seed=[^,]*")


def groups(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return groups of members that share all settings under `model` except the seed.

    A group is named by its members' common name without `seed=...`: `seeds` if nothing is left of
    it, the first member's name if they have no common name. Of members that share the seed too,
    only the first counts.

    Args:
        configs: The settings that would train each member in a run of its own, by name.

    Returns:
        The names of the members of each group of two or more, by the group's name.
    """
    by_settings: list[tuple[dict[str, Any], dict[int, str]]] = []
    for name, config in configs.items():
        model = dict(config["model"])
        seed = config["seed"] if model.get("seed") is None else model["seed"]
        model["seed"] = None
        same = next((seeds for other, seeds in by_settings if other == model), None)
        if same is None:
            by_settings.append((model, same := {}))
        same.setdefault(seed, name)
    named: dict[str, list[str]] = {}
    for _, seeds in by_settings:
        names = list(seeds.values())
        if len(names) < 2:
            continue
        short = {_SEED.sub("", name).strip(",") or "seeds" for name in names}
        (name,) = short if len(short) == 1 else names[:1]
        named[names[0] if name in named else name] = names
    return named


class AcrossSeeds(Callback):
    """Writes how far the members of each group agree, at every validation after their own figures,
    to `metrics.csv` of the run and to its loggers, as `<group>/<figure>`: those of
    `sae.metrics.seed_consistency.agreement`, and beside `pw_mcc_signed` its value at the start and
    by chance.

    Dictionaries are compared in the unit they are trained in. Of groups whose matching takes more
    than `LIVE` there is one row, of the end, and the value at the start is of the first two seeds;
    groups of more than `MOST` latents are not compared, nor those of CrossLayerTranscoder, whose
    latents go
    by their place. Once a member was stopped, the others of its group are compared.

    Args:
        groups: the members' names by the group's.
        folder: of the run.
        resume_step: rows after it are dropped, for they will be made again.

    Attributes:
        levels: of each group, pw_mcc_signed_start and pw_mcc_signed_chance.
    """

    def __init__(
        self, groups: Mapping[str, list[str]], folder: Path, *, resume_step: int | None = None
    ) -> None:
        self.groups = dict(groups)
        self.rows = MetricsCSV(folder, resume_step=resume_step)
        self.levels: dict[str, dict[str, float]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"levels": self.levels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.levels = state_dict["levels"]

    def live(self, module: SAEModule) -> dict[str, list[Member]]:
        """Return the live members of each group that has at least two of them."""
        # What diverged since its last row of metrics is not stopped yet.
        members = {m.name: m for m in module.live if m.learner.sae.W_dec.isfinite().all()}
        found = {
            group: [members[name] for name in names if name in members]
            for group, names in self.groups.items()
        }
        return {group: some for group, some in found.items() if len(some) > 1}

    def on_train_start(self, trainer: Trainer, pl_module: SAEModule) -> None:
        """Drop groups that cannot be compared, and measure the agreement at the start."""
        for group, (first, *_) in self.live(pl_module).items():
            if reason := _incomparable(first.learner.sae):
                del self.groups[group]
                sys.stdout.write(f"{group}: no comparison of seeds: {reason}\n")
        for group, members in self.live(pl_module).items():
            if group in self.levels:  # the run goes on
                continue
            starts = [member.learner.sae.W_dec for member in members]
            if not _cheap(members):
                starts = starts[:2]
                sys.stdout.write(
                    f"{group}: {len(members)} seeds of {len(members[0].learner.sae.W_dec):,} "
                    "latents are compared at the end only, for matching them takes long\n"
                )
            self.levels[group] = {
                "pw_mcc_signed_start": pw_mcc_signed(starts),
                "pw_mcc_signed_chance": pw_mcc_signed_chance(*starts[0].shape),
            }

    def setup(self, trainer: Trainer, pl_module: SAEModule, stage: str) -> None:
        pl_module.after_validation.append(self.compare_live_members)

    def compare_live_members(self, module: SAEModule) -> None:
        """Write a row for each group that is compared during training."""
        for group, members in self.live(module).items():
            if _cheap(members):
                saes = [member.learner.eval_model() for member in members]
                densities = [member.density for member in members]
                figures, _ = agreement(
                    [sae.W_dec for sae in saes], [sae.W_enc for sae in saes], densities
                )
                self.write(module.trainer, module.steps, group, figures)

    def write(self, trainer: Trainer, step: int, group: str, figures: dict[str, float]) -> None:
        """Write a row of agreement metrics to `metrics.csv` and to every logger."""
        beside = {"pw_mcc_signed": figures["pw_mcc_signed"], **self.levels[group], **figures}
        row = {f"{group}/{key}": value for key, value in beside.items()}
        self.rows.add(row, step=step)
        log_row(trainer.loggers, row, step)

    def finish(
        self, folder: Path, places: Mapping[str, Path], module: SAEModule, trainer: Trainer
    ) -> dict[str, dict[str, Any]]:
        """Compare the saved SAEs of each group, write a last row, and return the results.

        Args:
            folder: Folder of the run; the consensus of a group goes to `consensus/<group>` there.
            places: Folder of each member, by name.
        """
        found = {}
        for group, members in self.live(module).items():
            own = {member.name: places[member.name] for member in members}
            into = folder / "consensus" / group
            figures, more = compare(own, into, trainer.datamodule, trainer.strategy.root_device)
            self.write(trainer, module.steps, group, figures)
            found[group] = {"members": list(own), **figures, **self.levels[group], **more}
        return found


def _incomparable(sae: SAE) -> str | None:
    """Return why dictionaries like this one cannot be matched, or None if they can."""
    if sae.site.groups > 1:
        return f"latents of {type(sae.site).__name__} go by their place"
    if sae.d_sae > MOST:
        return f"matching more than {MOST:,} latents takes too long"
    return None


def _cheap(members: list[Member]) -> bool:
    """Return whether all pairs are matched fast enough to do it at every validation."""
    pairs = len(members) * (len(members) - 1) // 2
    return pairs * members[0].learner.sae.d_sae ** 3 <= LIVE


def compare(
    folders: Mapping[str, Path],
    into: Path,
    data: ActivationDataModule,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], dict[str, Any]]:
    """What finished members that differ in their seed agree on, by name to the folder of each.

    Stores each latent's stability in their `sae/`, and writes their consensus to `into`. Returns
    the figures of `sae.metrics.seed_consistency.agreement`, and {"consensus": ...}: its number of
    `latents`
    and figures `held_out`, or the `reason` why there is none; and on worlds `mmcs_of_latents`, of
    the consensus and of each.
    """
    saes = {name: SAE.load(folder / "sae") for name, folder in folders.items()}
    figures, matching = agreement(
        [sae.W_dec for sae in saes.values()],
        [sae.W_enc for sae in saes.values()],
        [Firing.load(folder / "density.json").density() for folder in folders.values()],
    )
    for (name, sae), stability in zip(saes.items(), matching.stability(), strict=True):
        sae.stability = stability
        sae.save(folders[name] / "sae")
    try:
        agreed = consensus(list(saes.values()), matching=matching)
    except UserError as error:
        return figures, {"consensus": {"latents": 0, "reason": str(error)}}
    agreed.save(into)
    held_out = evaluate(agreed.to(device), data.source, max_tokens=data.held_out_tokens)
    more: dict[str, Any] = {"latents": agreed.d_sae, "held_out": held_out}
    if (features := data.source.known_features()) is not None:
        every = {**{name: sae.W_dec for name, sae in saes.items()}, "consensus": agreed.W_dec}
        more["mmcs_of_latents"] = {
            name: mmcs_of_latents(W, features.truth) for name, W in every.items()
        }
    return figures, {"consensus": more}


def table(found: Mapping[str, dict[str, Any]]) -> Table:
    """Return a table with a row for each group."""
    table = Table(title="seeds: what they agree on", title_justify="left")
    levels = find_metrics(
        (
            "pw_mcc_signed",
            "pw_mcc_signed_start",
            "pw_mcc_signed_chance",
            "shared_fraction_signed",
        )
    )
    fvu = find_metric("fvu")
    for column in ("", "seeds", *(metric.short for metric in levels), "consensus"):
        table.add_column(column, justify="right" if column else "left")
    for group, of in found.items():
        agreed = of["consensus"]
        error = ""
        if agreed["latents"]:
            error = f", {fvu.short} {fvu.text(agreed['held_out'][fvu.name])}"
        table.add_row(
            group,
            str(len(of["members"])),
            *(metric.text(of[metric.name]) for metric in levels),
            f"{agreed['latents']:,} latents{error}",
        )
    return table

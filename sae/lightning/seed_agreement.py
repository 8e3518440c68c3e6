"""Agreement between members of a run that differ only in their seed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from sae.activations import ActivationData
from sae.autoencoder import SAE
from sae.errors import UserError
from sae.evaluation.consensus import consensus
from sae.evaluation.evaluate import evaluate
from sae.lightning.loggers import log_row
from sae.lightning.module import SAEModule
from sae.metrics.decoder_directions import mmcs_of_latents
from sae.metrics.firing import Firing
from sae.metrics.seed_consistency import agreement, pw_mcc_signed, pw_mcc_signed_chance
from sae.runs.metrics_csv import MetricsCSV
from sae.training.member import Member

# A group is compared at every validation if its pairs of seeds * d_sae^3 is at most this. Matching
# two dictionaries of 1,024, 2,048, 4,096 and 8,192 latents takes 0.05, 0.4, 2.3 and 11 s on a CPU
# if they have little in common (about d_sae^2.7), and a third to a half of that if they share 90%
# of their latents. At this limit, matching takes 3% to 5% of the time of 1,000 steps on that CPU.
MAX_MATCHING_COST = 2 * 4096**3
# Largest d_sae that is compared at all. The matrix of cosines of 16,384 latents takes 2 GiB.
MAX_LATENTS = 16_384

_SEED = re.compile(r"(^|,)(model\.)?seed=[^,]*")


def seed_groups(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return groups of members that share all settings under `model` except the seed.

    The name of a group is its members' name without `seed=...`, or `seeds` if nothing is left. If
    that differs between the members, it is the name of the first. If several members have the same
    seed as well, only the first is in the group.

    Args:
        configs: By member, the settings that would train it in a run of its own.

    Returns:
        The names of the members of each group of two or more, by the group's name.
    """
    by_settings: list[tuple[dict[str, Any], dict[int, str]]] = []
    for name, config in configs.items():
        model = dict(config["model"])
        seed = config["seed"] if model.get("seed") is None else model["seed"]
        model["seed"] = None
        by_seed = next((seeds for other, seeds in by_settings if other == model), None)
        if by_seed is None:
            by_settings.append((model, by_seed := {}))
        by_seed.setdefault(seed, name)
    groups: dict[str, list[str]] = {}
    for _, by_seed in by_settings:
        members = list(by_seed.values())
        if len(members) < 2:
            continue
        names = {_SEED.sub("", member).strip(",") or "seeds" for member in members}
        (name,) = names if len(names) == 1 else members[:1]
        groups[members[0] if name in groups else name] = members
    return groups


class SeedAgreement(Callback):
    """A callback that measures how far members agree that differ only in their seed.

    After each validation it writes the metrics of `sae.metrics.seed_consistency.agreement` to the
    run's `metrics.csv` and loggers, as `<group>/<metric>`, with the values of `pw_mcc_signed` at
    the start of training and by chance.

    Dictionaries are compared in the scale in which they are trained. If matching a group takes more
    than `MAX_MATCHING_COST`, the group is compared at the end only, and its value at the start
    is that of the first two seeds. Groups with more than `MAX_LATENTS` latents are not compared,
    and neither are those of CrossLayerTranscoder, where the index of a latent has a meaning. After
    a member is stopped, the remaining members of its group are compared.

    Args:
        groups: Names of the members of each group, see `seed_groups`.
        folder: Folder of the run.
        resume_step: Step from which the run resumes; later rows are dropped and written again.

    Attributes:
        levels: By group, its pw_mcc_signed_start and pw_mcc_signed_chance.
    """

    def __init__(
        self, groups: Mapping[str, list[str]], folder: Path, *, resume_step: int | None = None
    ) -> None:
        self.groups = dict(groups)
        self.metrics_csv = MetricsCSV(folder, resume_step=resume_step)
        self.levels: dict[str, dict[str, float]] = {}

    @property
    def state_key(self) -> str:
        return "AcrossSeeds"  # the key in checkpoints, from before this class was renamed

    def state_dict(self) -> dict[str, Any]:
        return {"levels": self.levels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.levels = state_dict["levels"]

    def live_groups(self, module: SAEModule) -> dict[str, list[Member]]:
        """Return the live members of each group that has at least two of them."""
        # A member that diverged since its last row of metrics is not stopped yet.
        finite = {m.name: m for m in module.live if m.learner.sae.W_dec.isfinite().all()}
        groups = {
            group: [finite[name] for name in names if name in finite]
            for group, names in self.groups.items()
        }
        return {group: members for group, members in groups.items() if len(members) > 1}

    def on_train_start(self, trainer: Trainer, pl_module: SAEModule) -> None:
        """Drop groups that cannot be compared, and measure the agreement at the start."""
        for group, (first, *_) in self.live_groups(pl_module).items():
            if reason := _incomparable(first.learner.sae):
                del self.groups[group]
                sys.stdout.write(f"{group}: seeds are not compared: {reason}\n")
        for group, members in self.live_groups(pl_module).items():
            if group in self.levels:  # loaded from the checkpoint of a resumed run
                continue
            starts = [member.learner.sae.W_dec for member in members]
            if not _cheap(members):
                starts = starts[:2]
                sys.stdout.write(
                    f"{group}: {len(members)} seeds of {len(members[0].learner.sae.W_dec):,} "
                    "latents are compared at the end only, because matching them takes long\n"
                )
            self.levels[group] = {
                "pw_mcc_signed_start": pw_mcc_signed(starts),
                "pw_mcc_signed_chance": pw_mcc_signed_chance(*starts[0].shape),
            }

    def setup(self, trainer: Trainer, pl_module: SAEModule, stage: str) -> None:
        pl_module.after_validation.append(self.compare_live_members)

    def compare_live_members(self, module: SAEModule) -> None:
        """Write a row for each group that is compared during training."""
        for group, members in self.live_groups(module).items():
            if _cheap(members):
                saes = [member.learner.eval_model() for member in members]
                densities = [member.density for member in members]
                metrics, _ = agreement(
                    [sae.W_dec for sae in saes], [sae.W_enc for sae in saes], densities
                )
                self.write(module.trainer, module.steps, group, metrics)

    def write(self, trainer: Trainer, step: int, group: str, metrics: dict[str, float]) -> None:
        """Write a row of agreement metrics to `metrics.csv` and to every logger."""
        # The levels come right after the metric that they belong to.
        values = {"pw_mcc_signed": metrics["pw_mcc_signed"], **self.levels[group], **metrics}
        row = {f"{group}/{key}": value for key, value in values.items()}
        self.metrics_csv.add(row, step=step)
        log_row(trainer.loggers, row, step)

    def finish(
        self, folder: Path, member_folders: Mapping[str, Path], module: SAEModule, trainer: Trainer
    ) -> dict[str, dict[str, Any]]:
        """Compare the saved SAEs of each group, write a last row, and return the results.

        Args:
            folder: Folder of the run; the consensus of a group goes to `consensus/<group>` there.
            member_folders: Folder of each member, by name.
            module: The trained members.
            trainer: The trainer of the run.

        Returns:
            By group, its `members`, its metrics, and its `consensus` (see `compare_saved`).
        """
        results = {}
        for group, members in self.live_groups(module).items():
            folders = {member.name: member_folders[member.name] for member in members}
            metrics, consensus_results = compare_saved(
                folders,
                folder / "consensus" / group,
                module.datamodule.data,
                trainer.strategy.root_device,
            )
            self.write(trainer, module.steps, group, metrics)
            results[group] = {
                "members": list(folders),
                **metrics,
                **self.levels[group],
                "consensus": consensus_results,
            }
        return results


def _incomparable(sae: SAE) -> str | None:
    """Return why dictionaries like this one cannot be matched, or None if they can."""
    if sae.site.groups > 1:
        return f"the index of a latent has a meaning in {type(sae.site).__name__}"
    if sae.d_sae > MAX_LATENTS:
        return f"matching more than {MAX_LATENTS:,} latents takes too long"
    return None


def _cheap(members: list[Member]) -> bool:
    """Return True if all pairs can be matched fast enough to do it at every validation."""
    pairs = len(members) * (len(members) - 1) // 2
    return pairs * members[0].learner.sae.d_sae ** 3 <= MAX_MATCHING_COST


def compare_saved(
    folders: Mapping[str, Path],
    consensus_folder: Path,
    data: ActivationData,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare the saved SAEs of members that differ only in their seed.

    The stability of each latent is stored in the members' `sae/`.

    Args:
        folders: Folder of each member, by name.
        consensus_folder: Folder to which the consensus SAE is written, if it has any latents.
        data: Activations to measure the consensus on.
        device: Device to measure it on.

    Returns:
        The metrics of `sae.metrics.seed_consistency.agreement`; and about the consensus its number
        of `latents`, with its `held_out` metrics or the `reason` why it has none. If the true
        features are known, `mmcs_of_latents` has that metric for each member and the consensus.
    """
    saes = {name: SAE.load(folder / "sae") for name, folder in folders.items()}
    metrics, matching = agreement(
        [sae.W_dec for sae in saes.values()],
        [sae.W_enc for sae in saes.values()],
        [Firing.load(folder / "density.json").density() for folder in folders.values()],
    )
    for (name, sae), stability in zip(saes.items(), matching.stability(), strict=True):
        sae.stability = stability
        sae.save(folders[name] / "sae")
    try:
        consensus_sae = consensus(list(saes.values()), matching=matching)
    except UserError as error:
        return metrics, {"latents": 0, "reason": str(error)}
    consensus_sae.save(consensus_folder)
    held_out = evaluate(consensus_sae.to(device), data.source, max_tokens=data.held_out_tokens)
    results: dict[str, Any] = {"latents": consensus_sae.d_sae, "held_out": held_out}
    if (features := data.source.known_features()) is not None:
        decoders = {name: sae.W_dec for name, sae in (saes | {"consensus": consensus_sae}).items()}
        results["mmcs_of_latents"] = {
            name: mmcs_of_latents(W_dec, features.truth) for name, W_dec in decoders.items()
        }
    return metrics, results

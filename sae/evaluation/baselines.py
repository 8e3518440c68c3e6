"""The siblings of a run that its figures are read beside: trained here, on as much as it was."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from sae.activations import ActivationData, Source
from sae.autoencoder import SAE
from sae.evaluation import baseline_sources as controls
from sae.training import loop
from sae.training.train_config import TrainConfig

T = TypeVar("T")


@dataclass
class Baseline:
    """A control: the run's settings with one of them changed, or its activations.

    Attributes:
        name: as in `sae.evaluation.baseline_sources`; `fewer` and `more` have half and twice the
        L0.
        says: a heading.
        source: what it trains on and is judged on.
        sae: once trained.
    """

    name: str
    says: str
    recipe: TrainConfig
    source: Source
    sae: SAE | None = None


def siblings(recipe: TrainConfig, source: Source, rows: int) -> list[Baseline]:
    """All that apply to a run of `recipe` on `source`; `rows` is what a block of it holds."""
    frozen = _changed(recipe, optim=controls.frozen_decoder(recipe.optim), resample_every=None)
    gaussian = controls.MatchedGaussian(source, rows=rows, seed=recipe.seed)
    found = []
    if recipe.sparse_coding is None:  # which is how the decoder is learnt
        found.append(Baseline(controls.FROZEN_DECODER, "decoder\nfrozen", frozen, source))
    found.append(Baseline(controls.GAUSSIAN, "Gaussian\nnoise", _changed(recipe), gaussian))
    untrained = controls.random_weights(source)
    if untrained is not None:
        found.append(
            Baseline(controls.RANDOM_WEIGHTS, "untrained\nmodel", _changed(recipe), untrained)
        )
    for name, says, factor in (("fewer", "half\nthe L0", 0.5), ("more", "twice\nthe L0", 2.0)):
        other = _with_l0(recipe, factor)
        if other is not None:
            found.append(Baseline(name, says, other, source))
    return found


def _changed(recipe: TrainConfig, **settings: Any) -> TrainConfig:
    other = copy.copy(recipe)
    for name, value in settings.items():
        setattr(other, name, value)
    return other


def _with_l0(recipe: TrainConfig, factor: float) -> TrainConfig | None:
    """The same with another k, or target_l0; None where the rule has neither, or no room for it."""
    rule, terms = recipe.sparsity, recipe.losses
    if rule.expected_l0 is not None:
        l0 = round(rule.expected_l0 * factor)
        if not 1 <= l0 <= rule.d_sae // 4 or rule.anneals:
            return None
        other_rule = rule.with_l0(l0)
        return None if other_rule is None else _changed(recipe, sparsity=other_rule)
    controlled = [term for term in terms if term.controlled]
    if not controlled:
        return None
    (term,) = controlled
    other = dataclasses.replace(term, target_l0=term.target_l0 * factor)
    return _changed(recipe, losses=[other if t is term else t for t in terms])


def train(found: list[Baseline], data: ActivationData, steps: int, device: Any) -> None:
    """Fill in every sibling's `sae`. Those of one source learn side by side from one stream."""
    by_source: dict[int, list[Baseline]] = {}
    for sibling in found:
        by_source.setdefault(id(sibling.source), []).append(sibling)
    for group in by_source.values():
        source = group[0].source
        source.setup(device)
        stream = data.train_stream(steps, source=source)
        learners = [
            some.recipe.build_learner(source.widths, data.batch_size, steps).to(device)
            for some in group
        ]
        says = ", ".join(some.says.replace("\n", " ") for some in group)
        for _ in _progress(loop.train(learners, stream, accumulate=data.accumulate), steps, says):
            pass
        for sibling, learner in zip(group, learners, strict=True):
            sibling.sae = learner.export()


def _progress(batches: Iterable[T], steps: int, says: str) -> Iterator[T]:
    """`batches`, of which there are `steps`, with a bar on a terminal and a line every tenth of
    them elsewhere."""
    if sys.stdout.isatty():
        yield from track(batches, f"controls: {says}", steps, console=Console(file=sys.stdout))
        return
    for done, batch in enumerate(batches, start=1):
        yield batch
        if done * 10 // steps != (done - 1) * 10 // steps:
            sys.stdout.write(f"controls: {says}: {done / steps:.0%}\n")
            sys.stdout.flush()

"""Every figure that is a statistic of something: with its interval, and chance where it means one.

`APPLIES` lists what is scored where. The rest, such as L0 and what a width allows for, is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sae.evaluation.context import Case
from sae.metrics.absorption import absorption_of_parents
from sae.metrics.amortisation import amortisation_gap, inference_or_dictionary
from sae.metrics.bootstrap import Score, bootstrap_score, ratio
from sae.metrics.code_matching import as_codes, samples_matrix, support_per_matched_latent
from sae.metrics.dci import dci
from sae.metrics.decoder_directions import (
    c_dec_chance,
    c_dec_of_latents,
    dictionary_chance,
    dictionary_mcc_chance,
    matched_cosines_signed,
    mmcs,
    mmcs_uniqueness,
    signed_cosines,
    uniqueness_of_latents,
)
from sae.metrics.interpretability import intruder_detection, machine_interpretability
from sae.metrics.probing import sparse_probing_balanced_accuracy
from sae_kernels.codes import Codes

# Rows for the best codes: as many as make this many numbers of codes, since 256 rows of 8,192
# latents take 24 seconds of one core.
GAP_NUMBERS, GAP_ROWS = 2**21, 256
# Lasso regressions of more features on more latents than this take longer than all else.
DCI_PAIRS = 2**17
PROBES = 16
LATENTS = 100
DENSE = 0.1
"""Share of tokens from which on a latent counts as dense."""
REFERENCES, EXAMPLES, QUANTILE = 9, 4, 0.25

Scores = dict[str, Score | float]


def reconstruction(case: Case) -> Scores:
    """Chance of FVU is what the mean gets."""
    found = case.sample.scores()
    return found | {"fvu": replace(found["fvu"], chance=1.0)}


def latents(case: Case) -> Scores:
    fired, density = case.firing.counts > 0, case.firing.density()
    return {
        "never_fired_fraction": bootstrap_score(~fired),
        "dense_fraction": bootstrap_score(density > DENSE),
    }


def directions(case: Case) -> Scores:
    """c_dec is a mean over pairs of latents: a latent moves it by twice what its own mean does."""
    of_latents = c_dec_of_latents(case.sae.W_dec)
    own = bootstrap_score(2 * of_latents - of_latents.mean())
    chance = c_dec_chance(case.sae.d_out)
    return {"c_dec": replace(own, chance=chance)}


def amortisation(case: Case) -> Scores:
    x = case.sample.x[: max(GAP_ROWS, GAP_NUMBERS // case.sae.d_sae)]
    gap = amortisation_gap(case.sae, x)
    own, best, missed, spread = gap.of_rows.T
    less = lambda a, b, axis: 1 - b.sum(axis) / a.sum(axis)
    scores = {
        "gap.fvu": bootstrap_score(own, spread, statistic=ratio),
        "gap.fvu_best": bootstrap_score(best, spread, statistic=ratio),
        "gap.fvu_gap": bootstrap_score(own - best, spread, statistic=ratio),
        "gap.share": bootstrap_score(own, best, statistic=less),
        "gap.lasso_gap": bootstrap_score(missed, spread, statistic=ratio),
    }
    return {f"gap.{name}": figure for name, figure in gap.figures().items()} | scores


def matched_dictionary(case: Case) -> Scores:
    W_dec, truth, d_sae = case.sae.W_dec, case.truth, case.sae.d_sae
    chance = lambda score: dictionary_chance(score, truth, d_sae)
    return {
        "dictionary_mcc_signed": bootstrap_score(
            matched_cosines_signed(W_dec, truth), chance=dictionary_mcc_chance(truth, d_sae)
        ),
        "mmcs": bootstrap_score(signed_cosines(W_dec, truth).amax(1), chance=chance(mmcs)),
        "mmcs_uniqueness": bootstrap_score(
            uniqueness_of_latents(W_dec, truth), chance=chance(mmcs_uniqueness)
        ),
    }


def matched_codes(case: Case) -> Scores:
    match, matching = case.match, case.matching
    support = support_per_matched_latent(*case.few, matching)

    def of_support(name: str) -> Callable[[Codes, Codes], float]:
        def score(z: Codes, z_hat: Codes) -> float:
            found = support_per_matched_latent(z, z_hat, match(z, z_hat))
            return getattr(found, name).mean().item()

        return score

    scores = {
        f"support_{name}": bootstrap_score(
            getattr(support, name), chance=case.chance(of_support(name))
        )
        for name in ("precision", "recall", "f1")
    }
    own = case.chance(lambda z, z_hat: match(z, z_hat).mean())
    return {"code_mcc": bootstrap_score(matching.correlations, chance=own), **scores}


def who_is_at_fault(case: Case) -> Scores:
    rows = max(GAP_ROWS, GAP_NUMBERS // case.sae.d_sae)
    x, z = case.sample.x[:rows], case.z.rows(slice(0, rows))
    split = inference_or_dictionary(case.sae, x, z, case.truth)
    own, best, true = (part.correlations for part in (split.own, split.best, split.true))
    parts = {
        "code_mcc_own": own,
        "code_mcc_best": best,
        "code_mcc_true": true,
        "inference_share": best - own,
        "dictionary_share": true - best,
        "rest": 1 - true,
    }
    return split.figures() | {name: bootstrap_score(units) for name, units in parts.items()}


def disentanglement(case: Case) -> Scores:
    z, z_hat = case.few
    if len(case.matching.features) * case.sae.d_sae > DCI_PAIRS:
        return {}
    shuffled = samples_matrix(z_hat)[np.random.default_rng(0).permutation(z_hat.batch)]
    found, by_chance = dci(z, z_hat), dci(z, as_codes(shuffled))
    counts = found.weights > 0
    weights, values = found.weights[counts], found.disentanglement[counts]
    return {
        "dci_disentanglement": bootstrap_score(
            weights * values,
            weights,
            statistic=ratio,
            chance=by_chance.mean_disentanglement(),
        ),
        "dci_completeness": bootstrap_score(
            found.completeness, chance=by_chance.mean_completeness()
        ),
        "dci_error": bootstrap_score(found.error, chance=by_chance.mean_error()),
    }


def parents_absorbed(case: Case) -> Scores:
    z, codes = case.few
    latent_of = torch.full((len(case.truth),), -1)
    latent_of[case.matching.features] = case.matching.latents
    found = absorption_of_parents(
        z,
        codes,
        case.sample.x[: z.batch].cpu(),
        case.sae.W_dec,
        case.truth,
        case.parents,
        latent_of,
    ).values()
    return {
        f"absorption_{name}": bootstrap_score(
            torch.tensor([getattr(one, name).mean() for one in found], dtype=torch.float64)
        )
        for name in ("full", "fraction")
    }


def probes(case: Case) -> Scores:
    """Is a true feature active? Of `PROBES` of them, drawn by a seed."""
    z, codes = case.few
    chosen = np.random.default_rng(0).permutation(z.d_sae)[:PROBES]
    labels = torch.from_numpy(samples_matrix(z)[:, chosen].toarray() != 0)
    found = sparse_probing_balanced_accuracy(codes, case.sample.x[: z.batch], labels)
    named = {f"probe_{k}_latents": scores for k, scores in found.latents.items()}
    named |= {"probe_activations": found.acts, "probe_dimension": found.neuron}
    return {name: _known(scores, chance=0.5) for name, scores in named.items()}


def interpretability(case: Case) -> Scores:
    """Of `LATENTS` drawn by a seed among those that fire often enough for the tasks."""
    least = {"mis": (REFERENCES + 1) / QUANTILE, "intruder": EXAMPLES / QUANTILE}
    fired = np.diff(samples_matrix(case.codes).tocsc().indptr)
    drawn = np.random.default_rng(0).permutation(case.codes.d_sae)
    some = {name: drawn[fired[drawn] >= n][:LATENTS].tolist() for name, n in least.items()}
    mis = machine_interpretability(
        case.codes,
        case.similarity,
        latents=some["mis"],
        references=REFERENCES,
        quantile=QUANTILE,
    )
    intruder = intruder_detection(
        case.codes,
        case.similarity,
        latents=some["intruder"],
        examples=EXAMPLES,
        quantile=QUANTILE,
    )
    return {
        "mis": _known(mis, chance=0.5),
        "intruder": _known(intruder, chance=1 / (EXAMPLES + 1)),
    }


def model_output(case: Case) -> Scores:
    """Chance is what the mean in place of activations gets. Resampled are contexts."""
    sums = case.of_contexts
    of = lambda above, below: bootstrap_score(above, below, statistic=ratio)
    mean = of(sums["cosine_mean_ablation"], sums["tokens"])
    cosine = of(sums["cosine_sae"], sums["tokens"])
    scores = {
        "output_cosine": replace(cosine, chance=mean.value),
        "output_cosine_mean_ablation": mean,
    }
    if "targets" not in sums:
        return scores
    for name in ("ce_clean", "ce_sae", "ce_zero_ablation", "ce_mean_ablation", "kl_sae"):
        scores[name] = of(sums[name], sums["targets"])
    gained = lambda run: of(
        sums["ce_zero_ablation"] - sums[run], sums["ce_zero_ablation"] - sums["ce_clean"]
    )
    chance = gained("ce_mean_ablation").value
    return scores | {"loss_recovered": replace(gained("ce_sae"), chance=chance)}


APPLIES: tuple[tuple[Callable[[Case], Scores], tuple[str, ...]], ...] = (
    (reconstruction, ()),
    (latents, ()),
    (directions, ()),
    (amortisation, ("dictionary",)),
    (matched_dictionary, ("truth",)),
    (matched_codes, ("z",)),
    (who_is_at_fault, ("z", "truth", "dictionary")),
    (disentanglement, ("z",)),
    (parents_absorbed, ("z", "truth", "parents")),
    (probes, ("z",)),
    (interpretability, ("similarity",)),
    (model_output, ("of_contexts",)),
)
"""Each, and what of a `Case` must be known for it."""


@torch.no_grad()
def scores(case: Case) -> dict[str, float]:
    """All that apply, flat: see `Score.figures`."""
    found: dict[str, float] = {}
    for score, needs in APPLIES:
        if all(getattr(case, name) is not None for name in needs):
            for name, figure in score(case).items():
                found |= figure.figures(name) if isinstance(figure, Score) else {name: figure}
    return found


def _known(units: Tensor, *, chance: float) -> Score:
    """Of the units that are scored at all."""
    return bootstrap_score(units[~units.isnan()], chance=chance)

"""The list of all metrics: every table, CSV label, page, plot and logger reads them from here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sae.metrics.metric import Metric

SECTIONS = (
    "Reconstruction",
    "Effect on the model",
    "Latents",
    "Ground truth",
    "Interpretability",
    "Capacity",
    "Data",
    "Training",
    "Agreement between seeds",
)
"""Headings of the tables, in order."""

_METRICS: dict[str, tuple[Metric, ...]] = {
    "Reconstruction": (
        Metric(
            "fvu",
            "FVU",
            "Fraction of variance unexplained: squared error over variance. 0 is a perfect copy, "
            "1 is what the mean alone gives.",
            "lower",
        ),
        Metric(
            "cosine",
            "cosine",
            "Mean cosine between an activation and its reconstruction.",
            "higher",
        ),
        Metric(
            "shrinkage",
            "norm ratio",
            "Mean norm of reconstructions over mean norm of activations. Below 1, reconstructions "
            "are too short.",
            "one",
        ),
        Metric(
            "relative_reconstruction_bias",
            "reconstruction bias",
            "Inverse of the factor that would minimise the error if it multiplied every "
            "reconstruction. Below 1, reconstructions are too short.",
            "one",
        ),
        Metric(
            "gap.fvu_gap",
            "amortisation gap, FVU",
            "FVU that better codes save with the same dictionary and as many active latents.",
            "lower",
        ),
        Metric(
            "gap.share",
            "gap, share of FVU",
            "The amortisation gap as a share of the SAE's FVU.",
            "lower",
            ".1%",
            detail=True,
        ),
        Metric(
            "gap.lasso_gap",
            "gap, certified lasso",
            "Certified lower bound on how far the codes are from the optimum of the lasso, in "
            "units of the variance.",
            "lower",
            detail=True,
        ),
    ),
    "Effect on the model": (
        Metric(
            "output_cosine",
            "cosine of model's output",
            "Mean cosine between the model's final hidden states with and without the SAE in "
            "place.",
            "higher",
            heading="output cosine",
        ),
        Metric(
            "output_cosine_mean_ablation",
            "cosine, mean in place",
            "Baseline: the same cosine with every activation replaced by the mean.",
            detail=True,
        ),
        Metric(
            "ce_clean",
            "model's loss",
            "Next-token cross-entropy of the model as it is.",
            unit="nats",
        ),
        Metric(
            "ce_sae",
            "loss, SAE in place",
            "Next-token cross-entropy with activations replaced by their reconstructions.",
            "lower",
            unit="nats",
            detail=True,
        ),
        Metric(
            "ce_zero_ablation",
            "loss, zeros in place",
            "Baseline: the loss with activations replaced by zeros.",
            unit="nats",
            detail=True,
        ),
        Metric(
            "ce_mean_ablation",
            "loss, mean in place",
            "Baseline: the loss with activations replaced by their mean.",
            unit="nats",
            detail=True,
        ),
        Metric(
            "loss_recovered",
            "loss recovered",
            "Share of the loss between zeros and the clean model that the SAE recovers. 1 is no "
            "harm, 0 is no better than zeros.",
            "higher",
        ),
        Metric(
            "kl_sae",
            "KL of model's output",
            "KL divergence from the clean next-token distribution to the one with the SAE in "
            "place.",
            "lower",
            unit="nats",
            heading="KL",
        ),
    ),
    "Latents": (
        Metric(
            "l0",
            "L0",
            "Mean number of latents that fire on a token.",
            format=".1f",
            unit="latents per token",
        ),
        Metric(
            "never_fired_fraction",
            "never fired",
            "Share of latents that fired on no held-out token; larger with fewer tokens.",
            "lower",
            ".2%",
        ),
        Metric(
            "dead_fraction",
            "dead latents",
            "Share of latents that had stopped firing when training ended.",
            "lower",
            ".2%",
            heading="dead",
        ),
        Metric(
            "dense_fraction",
            "dense latents",
            "Share of latents that fire on more than 10% of tokens.",
            "lower",
            ".2%",
        ),
        Metric(
            "c_dec",
            "c_dec, mean |cosine|",
            "Mean absolute cosine between two decoder rows. Over a sweep of L0 it is least near "
            "the right L0.",
            "lower",
        ),
    ),
    "Ground truth": (
        Metric(
            "dictionary_mcc_signed",
            "dictionary MCC",
            "Mean cosine between each true feature and the latent matched to it one to one.",
            "higher",
            heading="MCC",
        ),
        Metric(
            "mmcs",
            "MMCS",
            "Mean over true features of the largest cosine with any latent.",
            "higher",
            ".3f",
        ),
        Metric(
            "mmcs_uniqueness",
            "MMCS uniqueness",
            "Share of latents left if latents with the same nearest feature are counted once.",
            "higher",
            ".3f",
            detail=True,
        ),
        Metric(
            "code_mcc",
            "code MCC",
            "Mean correlation between each true feature's activations and those of the latent "
            "matched to it.",
            "higher",
            ".3f",
        ),
        Metric(
            "inference_share",
            "gain of better codes",
            "Code MCC that better inference with the learned dictionary adds.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "dictionary_share",
            "gain of true dictionary",
            "Code MCC that the true dictionary adds beyond better inference.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "rest",
            "gain of neither",
            "Code MCC that is missing with the true dictionary and the best codes found: k is "
            "wrong, or the codes cannot be identified.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "support_precision",
            "support precision",
            "Share of a latent's firings at which its true feature is active.",
            "higher",
            ".3f",
        ),
        Metric(
            "support_recall",
            "support recall",
            "Share of a true feature's activations at which its latent fires.",
            "higher",
            ".3f",
            detail=True,
        ),
        Metric(
            "support_f1",
            "support F1",
            "Harmonic mean of support precision and recall.",
            "higher",
            ".3f",
            detail=True,
        ),
        Metric(
            "dci_disentanglement",
            "DCI disentanglement",
            "1 if every latent helps to predict one true feature only, 0 if all features equally.",
            "higher",
            ".3f",
        ),
        Metric(
            "dci_completeness",
            "DCI completeness",
            "1 if every true feature is predicted from one latent only, 0 if from all equally.",
            "higher",
            ".3f",
            detail=True,
        ),
        Metric(
            "dci_error",
            "DCI prediction error",
            "Root mean squared error of predicting a true feature from the latents, over its "
            "standard deviation.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "absorption_full",
            "absorption, full",
            "Share of a parent feature's activations at which its latent is silent and another "
            "latent writes it.",
            "lower",
            ".3f",
        ),
        Metric(
            "absorption_fraction",
            "absorption, partial",
            "Mean share of a parent feature that other latents write.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "probe_1_latents",
            "probe on 1 latent",
            "Balanced accuracy of a linear probe for a true feature on the best latent.",
            "higher",
            ".3f",
        ),
        Metric(
            "probe_2_latents",
            "probe on 2 latents",
            "Balanced accuracy of a linear probe for a true feature on the best 2 latents.",
            "higher",
            ".3f",
            in_table=False,
        ),
        Metric(
            "probe_5_latents",
            "probe on 5 latents",
            "Balanced accuracy of a linear probe for a true feature on the best 5 latents.",
            "higher",
            ".3f",
            detail=True,
        ),
        Metric(
            "probe_dimension",
            "probe on 1 dimension",
            "Baseline: the probe on the best single dimension of the activations.",
            format=".3f",
            detail=True,
        ),
        Metric(
            "probe_activations",
            "probe on activations",
            "Baseline: the probe on all dimensions of the activations.",
            format=".3f",
            detail=True,
        ),
    ),
    "Interpretability": (
        Metric(
            "mis",
            "MIS",
            "Machine interpretability score: share of tasks in which the similarity tells a "
            "latent's strongest samples from its weakest.",
            "higher",
            ".3f",
        ),
        Metric(
            "intruder",
            "intruder found",
            "Share of tasks in which the similarity finds the sample on which a latent is "
            "silent among samples on which it fires.",
            "higher",
            ".3f",
        ),
    ),
    "Capacity": (
        Metric(
            "delta",
            "dimensions L0 needs",
            "Dimensions that compressed sensing needs to recover codes of this L0.",
            format=".1f",
        ),
        Metric(
            "margin",
            "dimensions, have / need",
            "Dimensions of the activations over the dimensions that this L0 needs. Below 1 the "
            "codes cannot be right.",
            "higher",
            ".2f",
            detail=True,
        ),
        Metric(
            "largest_k",
            "largest possible L0",
            "The largest L0 at which codes of this width and dimension can be recovered.",
            format=".0f",
        ),
    ),
    "Data": (
        Metric("tokens", "held-out tokens", "Held-out activations evaluated.", format=",.0f"),
        Metric(
            "effective_dimension",
            "effective dimension",
            "Participation ratio of the covariance of the activations: d_in if all directions "
            "vary alike.",
            format=".1f",
        ),
        Metric(
            "downstream_tokens",
            "tokens replaced",
            "Held-out positions at which the model's activations were replaced.",
            format=",.0f",
            in_table=False,
        ),
        Metric(
            "ce_tokens",
            "tokens predicted",
            "Held-out positions over which the model's loss is a mean.",
            format=",.0f",
            in_table=False,
        ),
    ),
    "Training": (
        Metric("loss", "loss", "Weighted sum of the loss terms.", "lower", in_table=False),
        Metric("lr", "learning rate", "Current learning rate.", format=".3g", in_table=False),
        Metric(
            "learning_rate",
            "learning rate",
            "Largest learning rate of the run.",
            format=".3g",
            in_table=False,
        ),
        Metric(
            "tokens_per_second",
            "tokens per second",
            "Training throughput, including harvests.",
            "higher",
            ",.0f",
            heading="tokens/s",
            in_table=False,
        ),
        Metric("steps", "steps", "Training steps taken.", format=",.0f", in_table=False),
        Metric(
            "resampled",
            "latents resampled",
            "Dead latents that were reinitialised.",
            format=",.0f",
            in_table=False,
        ),
        Metric(
            "revived",
            "resampled, fired again",
            "Resampled latents that have fired since.",
            format=",.0f",
            detail=True,
            in_table=False,
        ),
    ),
    "Agreement between seeds": (
        Metric(
            "pw_mcc_signed",
            "PW-MCC",
            "Mean cosine of latents matched one to one, over pairs of seeds.",
            "higher",
            ".3f",
        ),
        Metric(
            "pw_mcc_signed_start",
            "PW-MCC at the start",
            "Baseline: PW-MCC of the same SAEs before training.",
            format=".3f",
            heading="at start",
            detail=True,
        ),
        Metric(
            "shared_fraction_signed",
            "shared latents",
            "Share of latents matched above 0.7 in decoder and encoder cosine.",
            "higher",
            ".1%",
            heading="shared",
        ),
    ),
}
METRICS: dict[str, Metric] = {
    metric.name: metric for metrics in _METRICS.values() for metric in metrics
}
"""All declared metrics by name."""


SAE_COLUMNS = ("fvu", "held_out_fvu", "l0", "dead_fraction")
"""Columns of the tables that have one row per SAE of a run or a sweep."""


def by_section() -> Iterator[tuple[str, tuple[Metric, ...]]]:
    """Yield each section's heading and its metrics, in the order in which they are shown."""
    for section in SECTIONS:
        if metrics := _METRICS.get(section):
            yield section, metrics


def find_metric(name: str) -> Metric:
    """Return the declaration of the metric that is stored under the key `name`.

    Understands `held_out_<name>`, `<name>_chance`, `<SAE or group>/<name>` and `loss_<term>`. An
    undeclared name gets a plain declaration with the name as its label.
    """
    name = name.rsplit("/", 1)[-1]
    if name in METRICS:
        return METRICS[name]
    if name.startswith("held_out_"):
        return find_metric(name.removeprefix("held_out_")).held_out()
    if name.startswith("loss_"):
        return Metric(name, f"loss term {name.removeprefix('loss_')}", "One term of the loss.")
    if name.endswith("_chance"):
        return find_metric(name.removesuffix("_chance")).chance()
    return Metric(name, name)


def find_metrics(names: Iterable[str]) -> list[Metric]:
    """Return the declarations of several metrics, see `find_metric`."""
    return [find_metric(name) for name in names]

"""The model's output with the SAE in place of its activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sae.metrics.interval import COSINE, POSITIVE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, ratio_score


def measure_model_output(document_sums: Mapping[str, Tensor]) -> dict[str, Score]:
    """Return cosine, loss and KL of the model's output, with intervals over documents.

    The chance level is what the mean in place of the activations gets.

    Args:
        document_sums: sums over the positions of each document, see `Downstream.document_sums`.
    """
    sums = document_sums
    mean_ablation = ratio_score(sums["cosine_mean_ablation"], sums["tokens"], bounds=COSINE)
    cosine = ratio_score(sums["cosine_sae"], sums["tokens"], bounds=COSINE)
    scores = {
        "output_cosine": replace(cosine, chance=mean_ablation.value),
        "output_cosine_mean_ablation": mean_ablation,
    }
    if "targets" not in sums:  # the model has no next-token head
        return scores
    for name in ("ce_clean", "ce_sae", "ce_zero_ablation", "ce_mean_ablation", "kl_sae"):
        scores[name] = ratio_score(sums[name], sums["targets"], bounds=POSITIVE)
    difference = lambda name: ratio_score(sums[name] - sums["ce_clean"], sums["targets"])
    recovered = lambda name: ratio_score(
        sums["ce_zero_ablation"] - sums[name], sums["ce_zero_ablation"] - sums["ce_clean"]
    )
    for name, score in (("ce_difference", difference), ("loss_recovered", recovered)):
        scores[name] = replace(score("ce_sae"), chance=score("ce_mean_ablation").value)
    return scores


MEASUREMENT = Measurement(
    compute=measure_model_output,
    needs=("document_sums",),
    section="Effect on the model",
    metrics=(
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
            "ce_difference",
            "CE difference",
            "Next-token cross-entropy that the SAE in place adds to the model's own.",
            "lower",
            unit="nats",
        ),
        Metric(
            "loss_recovered",
            "loss recovered",
            "Share of the loss between zeros and the clean model that the SAE recovers. 1 is no "
            "harm, 0 is no better than zeros. Zeros do so much harm that poor SAEs get close to 1: "
            "read it beside the CE difference and what the mean recovers, the chance level.",
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
)

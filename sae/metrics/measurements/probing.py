"""Linear probes for true features on a few latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae.metrics.code_matching import samples_matrix
from sae.metrics.interval import SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.probing import sparse_probing_balanced_accuracy
from sae.metrics.score import Score, mean_score
from sae_kernels.codes import Codes

PROBED_FEATURES = 16


def measure_probing(code_pair: tuple[Codes, Codes], x: Tensor) -> dict[str, Score]:
    """Return probe accuracies for `PROBED_FEATURES` true features drawn with a fixed seed.

    A probe predicts whether the feature is active. Features with too few examples are left out.
    """
    true_codes, codes = code_pair
    features = np.random.default_rng(0).permutation(true_codes.d_sae)[:PROBED_FEATURES]
    labels = torch.from_numpy(samples_matrix(true_codes)[:, features].toarray() != 0)
    probes = sparse_probing_balanced_accuracy(codes, x[: true_codes.batch], labels)
    accuracies = {f"probe_{k}_latents": values for k, values in probes.latents.items()}
    accuracies |= {"probe_activations": probes.acts, "probe_dimension": probes.neuron}
    return {
        name: mean_score(values[~values.isnan()], bounds=SHARE, chance=0.5)
        for name, values in accuracies.items()
    }


MEASUREMENT = Measurement(
    compute=measure_probing,
    needs=("code_pair", "x"),
    section="Ground truth",
    metrics=(
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
)

"""k-sparse probing: how well a linear probe on a few latents predicts a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae.errors import UserError
from sae.metrics.code_matching import samples_matrix
from sae_kernels.codes import Codes

MIN_EXAMPLES = 5
"""Smallest number of samples of each class in each half, for a task to be scored."""


@dataclass(frozen=True)
class SparseProbing:
    """Balanced accuracies of each task on samples not fitted; chance is 1/2 for any labels.

    Each is float64 [tasks], and NaN for a task with fewer than `MIN_EXAMPLES` of a class in a half.
    """

    latents: dict[int, Tensor]
    """Accuracy, by k, of a probe on the k latents chosen for the task."""
    acts: Tensor
    """Upper baseline: a probe on all dimensions of the activations."""
    neuron: Tensor
    """Lower baseline: a probe on one dimension of the activations, chosen in the same way."""


def sparse_probing_balanced_accuracy(
    codes: Codes | Tensor,
    acts: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (1, 2, 5),
    seed: int = 0,
) -> SparseProbing:
    """Fit logistic probes of each label on the k latents whose class means differ most.

    A random half of the samples is used to choose latents and fit, the other half to score.
    Latents are chosen by |mean over positives - mean over negatives|, as in SAEBench, where classes
    are balanced; here the probe weights them to be.

    Args:
        codes: codes of n samples.
        acts: activations [n, d_in].
        labels: bool [n] or [n, tasks].
        ks: numbers of latents.
        seed: seed of the split.

    Raises:
        UserError: the numbers of samples differ.
    """
    classes = labels.reshape(len(labels), -1).bool().cpu().numpy()
    matrix, dense = samples_matrix(codes).tocsc(), acts.detach().double().cpu().numpy()
    n = len(classes)
    if not n == matrix.shape[0] == len(dense):
        raise UserError(
            f"{matrix.shape[0]} codes, {len(dense)} activations and {n} labels do not belong to "
            "the same samples"
        )
    order = np.random.default_rng(seed).permutation(n)
    fit, test = order[: n // 2], order[n // 2 :]
    scores = {name: np.full(classes.shape[1], np.nan) for name in ("acts", "neuron", *ks)}
    fitted = matrix.tocsr()[fit]
    for task, y in enumerate(classes.T):
        counts = [half.sum() for half in (y[fit], ~y[fit], y[test], ~y[test])]
        if min(counts) < MIN_EXAMPLES:
            continue
        by_difference = np.argsort(-_difference(fitted, y[fit]), kind="stable")
        for k in ks:
            chosen = matrix[:, by_difference[:k]].toarray()
            scores[k][task] = _probe(chosen, y, fit, test)
        best = int(np.argmax(_difference(dense[fit], y[fit])))
        scores["neuron"][task] = _probe(dense[:, [best]], y, fit, test)
        scores["acts"][task] = _probe(dense, y, fit, test)
    accuracies = {name: torch.from_numpy(values) for name, values in scores.items()}
    return SparseProbing({k: accuracies[k] for k in ks}, accuracies["acts"], accuracies["neuron"])


def _difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return |mean over rows with y - mean over rows without y| of each column."""
    weights = np.where(y, 1 / y.sum(), -1 / (~y).sum())
    return abs(x.T @ weights)


def _probe(x: np.ndarray, y: np.ndarray, fit: np.ndarray, test: np.ndarray) -> float:
    """Return the balanced accuracy on `test` of a probe fitted on `fit`."""
    # Imported here: the list of metrics is read at the start of every run, and scikit-learn is slow
    # to import.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    probe.fit(x[fit], y[fit])
    return balanced_accuracy_score(y[test], probe.predict(x[test]))

"""Is a latent one thing? Tasks that a person would be given, answered by a similarity instead.

A similarity is a function of sample numbers, so that anything can be plugged in: embeddings of the
samples, labels, or the true codes of a world. Scores are only as good as it is; the same scores of
an autoencoder of a random-weight network belong beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sae.metrics.code_matching import samples_matrix
from sae_kernels.codes import Codes

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Of samples a and b, int64 of one shape: how alike each pair is, float of that shape."""


def cosine_similarity(embedding: Tensor) -> Similarity:
    """Cosine of rows of `embedding` [n, width]: of any encoder, or true codes; 0 for empty rows."""
    unit = torch.nn.functional.normalize(embedding.detach().double().cpu())
    return lambda a, b: (unit[a] * unit[b]).sum(-1)


def label_agreement(labels: Tensor) -> Similarity:
    """Share of the labels of two samples that are equal; labels [n] or [n, kinds], any integers."""
    labels = labels.reshape(len(labels), -1).cpu()
    return lambda a, b: (labels[a] == labels[b]).double().mean(-1)


def machine_interpretability(
    codes: Codes | Tensor,
    similarity: Similarity,
    *,
    latents: Sequence[int] | None = None,
    tasks: int = 20,
    references: int = 9,
    quantile: float = 0.25,
    alpha: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Machine interpretability score (MIS) of latents, float64 [latents].

    A task: of two samples, which is like those that drive the latent most and unlike those that
    drive it least? From the top `quantile` of samples it fires on, by activation, K + 1 are drawn,
    and as many from the bottom `quantile` of all; of each the K = `references` most extreme explain
    the latent and the last is the query. With s the mean similarity of a query with K references,
    D+ = s(q+, E+) - s(q+, E-) and D- = s(q-, E+) - s(q-, E-), the score is the mean over `tasks` of
    sigma(alpha (D+ - D-)), or the share with D+ > D- where alpha is None, ties counting one half;
    .5 is chance either way (Zimmermann, Klindt & Brendel, arXiv 2410.14387: alpha .16, fitted to
    people on DreamSim's similarity; on similarities from 0 to 1 it keeps scores within .08 of
    chance).

    For a unit that is never 0 that is the published task; for a sparse latent the top quarter of
    all samples would be mostly zeros. NaN for a latent whose top has fewer than K + 1. Ties are in
    random order. `codes` of n samples; latents: which to score, all when left out.
    """
    scores = []
    for top, bottom, values, generator in _extremes(codes, latents, quantile, seed):
        if min(len(top), len(bottom)) < references + 1:
            scores.append(torch.nan)
            continue
        above = _drawn(top, values, tasks, references + 1, generator, descending=True)
        below = _drawn(bottom, values, tasks, references + 1, generator, descending=False)

        def s(query: Tensor, explained: Tensor) -> Tensor:
            return similarity(query[:, -1:].expand_as(explained[:, :-1]), explained[:, :-1]).mean(1)

        plus = s(above, above) - s(above, below)
        minus = s(below, above) - s(below, below)
        difference = (plus - minus).double()
        if alpha is None:
            task_scores = 0.5 + 0.5 * difference.sign()
        else:
            task_scores = torch.sigmoid(alpha * difference)
        scores.append(task_scores.mean().item())
    return torch.tensor(scores, dtype=torch.float64)


def intruder_detection(
    codes: Codes | Tensor,
    similarity: Similarity,
    *,
    latents: Sequence[int] | None = None,
    tasks: int = 20,
    examples: int = 4,
    quantile: float = 0.25,
    seed: int = 0,
) -> Tensor:
    """Share of tasks in which the intruder is found, float64 [latents]; chance 1 / (examples + 1).

    A task: `examples` samples from the top `quantile` by activation of those the latent fires on,
    and one from the bottom `quantile` of all, where a sparse latent is silent. Taken for the
    intruder is the one with the least mean similarity with the others; on a tie the guess is
    random, and the task counts its chance (after the explanation-free intruder score of Paulo &
    Belrose, arXiv 2507.08473, with an embedding for a judge: weaker than a reader). NaN for a
    latent with too few samples.
    """
    scores = []
    for top, bottom, values, generator in _extremes(codes, latents, quantile, seed):
        if len(top) < examples or len(bottom) == 0:
            scores.append(torch.nan)
            continue
        shown = _drawn(top, values, tasks, examples, generator, descending=True)
        intruder = _drawn(bottom, values, tasks, 1, generator, descending=False)
        shown = torch.cat([shown, intruder], dim=1)
        size = examples + 1
        a, b = shown[:, :, None].expand(-1, -1, size), shown[:, None, :].expand(-1, size, -1)
        alike = similarity(a, b).double() * (1 - torch.eye(size, dtype=torch.float64))
        alike = alike.sum(2)
        # Sums of the same numbers in another order differ in their last digits.
        odd = alike <= alike.amin(1, keepdim=True) + 1e-9
        scores.append((odd[:, -1].double() / odd.sum(1)).mean().item())
    return torch.tensor(scores, dtype=torch.float64)


def _extremes(
    codes: Codes | Tensor, latents: Sequence[int] | None, quantile: float, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]]:
    """Of each latent the top and the bottom samples, all its values [n], and its own generator."""
    matrix = samples_matrix(codes).tocsc()
    n, d_sae = matrix.shape
    for latent in range(d_sae) if latents is None else latents:
        generator = np.random.default_rng((seed, latent))
        values = matrix[:, [latent]].toarray()[:, 0]
        shuffled = generator.permutation(n)
        rising = shuffled[np.argsort(values[shuffled], kind="stable")]
        firing = rising[values[rising] != 0][::-1]
        top = firing[: math.ceil(quantile * len(firing))]
        yield top, rising[: math.ceil(quantile * n)], values, generator


def _drawn(
    pool: np.ndarray,
    values: np.ndarray,
    tasks: int,
    size: int,
    generator: np.random.Generator,
    *,
    descending: bool,
) -> Tensor:
    """int64 [tasks, size]: samples of `pool`, none twice in a task, from the most extreme on."""
    drawn = np.stack([generator.choice(pool, size, replace=False) for _ in range(tasks)])
    order = np.argsort(-values[drawn] if descending else values[drawn], axis=1, kind="stable")
    return torch.from_numpy(np.take_along_axis(drawn, order, axis=1))

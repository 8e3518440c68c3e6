"""Interpretability tasks for a person, answered by a similarity between samples instead.

A similarity is a function of sample numbers, so it can use embeddings of the samples, labels, or
the true codes of a world. Scores are only as good as the similarity; compare them with the scores
of random projections (`random_relu_projections`) and of an SAE of a model with random weights.
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
"""Function of sample numbers a and b, int64 of one shape; returns the similarity of each pair."""


def cosine_similarity(embedding: Tensor) -> Similarity:
    """Return the cosine similarity of rows of `embedding` [n, width]; 0 for rows of zeros."""
    unit = torch.nn.functional.normalize(embedding.detach().double().cpu())
    return lambda a, b: (unit[a] * unit[b]).sum(-1)


def label_agreement(labels: Tensor) -> Similarity:
    """Return the share of equal labels as similarity; labels [n] or [n, kinds], any integers."""
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
    """Compute the machine interpretability score (MIS) of latents.

    Each task asks which of two samples resembles those on which the latent is strongest and not
    those on which it is weakest. K + 1 samples are drawn from the top `quantile`, by activation, of
    the samples on which it fires, and K + 1 from the bottom `quantile` of all samples. Of each the
    K = `references` most extreme explain the latent (E+ and E-), and the last is the query (q+ and
    q-). With s the mean similarity of a query with K references, D+ = s(q+, E+) - s(q+, E-) and
    D- = s(q-, E+) - s(q-, E-). The score is the mean over tasks of sigma(alpha (D+ - D-)), or, if
    alpha is None, the share of tasks with D+ > D-, with ties counting one half. Guessing gets 0.5,
    and random projections of the samples far more.

    Source: Zimmermann, Klindt & Brendel, arXiv 2410.14387. Their alpha 0.16 was fitted to people
    with DreamSim's similarity; with similarities from 0 to 1 it keeps scores within 0.08 of chance.
    For a unit that is never 0 this is the published task. For a sparse latent the top quarter of
    all samples would be mostly zeros, hence the restriction to samples on which it fires.

    Args:
        codes: codes of n samples.
        similarity: similarity of samples.
        latents: latents to score; all by default.
        tasks: tasks per latent.
        references: K.
        quantile: share of samples that count as top and as bottom.
        alpha: see above.
        seed: seed of the draws; ties are in random order.

    Returns:
        Scores, float64 [latents]; NaN for a latent with fewer than K + 1 top or bottom samples.
    """
    scores = []
    for top, bottom, values, generator in _extremes(codes, latents, quantile, seed):
        if min(len(top), len(bottom)) < references + 1:
            scores.append(torch.nan)
            continue
        above = _draw(top, values, tasks, references + 1, generator, descending=True)
        below = _draw(bottom, values, tasks, references + 1, generator, descending=False)

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
    """Return the share of tasks in which the intruder is found, float64 [latents].

    Each task shows `examples` samples from the top `quantile`, by activation, of the samples on
    which the latent fires, and an intruder from the bottom `quantile` of all samples, on which a
    sparse latent is silent. The sample with the smallest mean similarity to the others is taken for
    the intruder; on a tie the guess is random and the task counts with its probability. Guessing
    gets 1 / (examples + 1). The result is NaN for a latent with too few samples. It follows the
    explanation-free intruder score of Paulo & Belrose, arXiv 2507.08473; a similarity is a weaker
    judge than their language model.
    """
    scores = []
    for top, bottom, values, generator in _extremes(codes, latents, quantile, seed):
        if len(top) < examples or len(bottom) == 0:
            scores.append(torch.nan)
            continue
        shown = _draw(top, values, tasks, examples, generator, descending=True)
        intruder = _draw(bottom, values, tasks, 1, generator, descending=False)
        shown = torch.cat([shown, intruder], dim=1)
        size = examples + 1
        a, b = shown[:, :, None].expand(-1, -1, size), shown[:, None, :].expand(-1, size, -1)
        similarities = similarity(a, b).double() * (1 - torch.eye(size, dtype=torch.float64))
        totals = similarities.sum(2)
        # Sums of the same numbers in another order differ in their last digits, hence the margin.
        odd = totals <= totals.amin(1, keepdim=True) + 1e-9
        scores.append((odd[:, -1].double() / odd.sum(1)).mean().item())
    return torch.tensor(scores, dtype=torch.float64)


def random_relu_projections(x: Tensor, fired: Sequence[int], *, seed: int = 0) -> Tensor:
    """Return ReLU(x @ W - threshold) of random directions W, float64 [n, latents] on the CPU.

    It stands for untrained latents: the threshold of each direction is such that it
    fires on as many samples as the latent in its place.

    Args:
        x: samples [n, d_in].
        fired: number of samples on which each latent fires, [latents].
        seed: seed of the directions.
    """
    # numpy's generator: with torch's, initial weights of the same seed would equal the directions.
    generator = np.random.default_rng(seed)
    directions = torch.from_numpy(generator.standard_normal((x.shape[1], len(fired))))
    projections = x.detach().double().cpu() @ directions
    falling = projections.sort(0, descending=True).values
    rank = torch.tensor(fired, dtype=torch.int64).clamp(max=len(x) - 1)
    return (projections - falling.gather(0, rank[None])).relu()


def _extremes(
    codes: Codes | Tensor, latents: Sequence[int] | None, quantile: float, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]]:
    """Yield each latent's top samples, bottom samples, values [n] and random generator."""
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


def _draw(
    pool: np.ndarray,
    values: np.ndarray,
    tasks: int,
    size: int,
    generator: np.random.Generator,
    *,
    descending: bool,
) -> Tensor:
    """Return samples of `pool`, distinct within a task, most extreme first, int64 [tasks, size]."""
    drawn = np.stack([generator.choice(pool, size, replace=False) for _ in range(tasks)])
    order = np.argsort(-values[drawn] if descending else values[drawn], axis=1, kind="stable")
    return torch.from_numpy(np.take_along_axis(drawn, order, axis=1))

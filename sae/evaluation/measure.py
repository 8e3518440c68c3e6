"""Measure everything that applies to a trained SAE: metrics, intervals and chance levels."""

from __future__ import annotations

import torch

from sae.activations import Source
from sae.autoencoder import SAE
from sae.evaluation.context import EvaluationContext
from sae.evaluation.evaluate import evaluate
from sae.evaluation.samples import Samples
from sae.evaluation.similarity import SampleSimilarity
from sae.metrics.firing import Firing
from sae.metrics.registry import MEASUREMENTS
from sae.metrics.score import Score
from sae.progress import progress


@torch.no_grad()
def measure(
    sae: SAE,
    source: Source,
    *,
    max_tokens: int = 65_536,
    seed: int = 0,
    similarity: SampleSimilarity | None = None,
    downstream: bool = True,
) -> dict[str, float | int]:
    """Return every metric that applies to `sae` on the held-out split of `source`.

    Args:
        sae: takes raw activations.
        source: a source that is set up.
        max_tokens: held-out activations to read.
        seed: seed of a world's samples.
        similarity: what samples are compared by; by default as `source` allows.
        downstream: run the model with the SAE in place, if the source has a model.

    Returns:
        Numbers by metric name, and `<name>_low`, `<name>_high` (95% interval) and `<name>_chance`
        where they are known; `<name>_units` where there are too few units for an interval.
        `sae.metrics.registry` describes the metrics.
    """
    firing, samples = Firing(sae.d_sae, sae.W_dec.device), Samples()
    options = {} if downstream else {"downstream_tokens": 0}
    metrics = evaluate(
        sae, source, max_tokens=max_tokens, seed=seed, firing=firing, samples=samples, **options
    )
    similarity = similarity or SampleSimilarity.from_source(source)
    context = EvaluationContext(sae, source, samples, firing, similarity)
    # Some scores are over the stored rows, or around another mean; the values over all rows win.
    return measure_context(context) | metrics


def measure_context(context: EvaluationContext) -> dict[str, float]:
    """Return the results of all measurements that apply to `context`, see `measure`."""
    results: dict[str, float] = {}
    with progress("measuring", len(MEASUREMENTS)) as task:
        for measurement in MEASUREMENTS:
            task.update(f"measuring {measurement.metrics[0].label}")
            inputs = {name: getattr(context, name) for name in measurement.needs}
            if all(value is not None for value in inputs.values()):
                for name, score in measurement.compute(**inputs).items():
                    results |= score.entries(name) if isinstance(score, Score) else {name: score}
            task.advance()
    return results

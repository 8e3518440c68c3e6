"""Measurements of an evaluated SAE, with intervals and chance levels.

One file per group of metrics: a function of what the evaluation collected, and the declaration of
the metrics that it returns. `sae.metrics.registry` lists them.
"""

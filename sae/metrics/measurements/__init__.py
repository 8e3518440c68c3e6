"""How each metric of an evaluated SAE is measured, with its interval and its chance level.

One file per group of metrics: a function of what the evaluation collected, and the declaration of
the metrics that it returns. `sae.metrics.registry` lists them.
"""

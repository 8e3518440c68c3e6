"""Metrics: one function or accumulator each, with the convention in its name.

`registry` lists them with their labels and formats.
"""

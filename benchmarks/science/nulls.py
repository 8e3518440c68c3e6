"""Lines of a science table for the chance levels of dictionary MCC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.science.target import Measurement


def mcc_nulls(nulls: Sequence[Mapping[str, float]], prefix: str = "") -> Iterator[Measurement]:
    """Yield both nulls of dictionary MCC.

    Args:
        nulls: the result of `dictionary_mcc_nulls` for each seed.
        prefix: what the labels of the lines begin with.
    """
    for name, label in (("random", "random directions"), ("samples", "training samples")):
        values = tuple(null[f"dictionary_mcc_{name}"] for null in nulls)
        yield Measurement(f"{prefix}dictionary MCC of {label}", values)

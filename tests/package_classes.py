"""The classes that the package itself registers, whatever else the process has imported."""

from __future__ import annotations

from sae.autoencoder.registry import Registered


def classes_of_the_package(family: type[Registered]) -> dict[str, type]:
    """Return {name: class} of a family, without classes that tests or benchmarks have added."""
    return {name: cls for name, cls in family.registry.items() if cls.__module__.startswith("sae.")}

"""Identify latents on a sphere from nonlinear data with a classifier of their classes.

There are 5 latents, von Mises-Fisher distributed around 100 class vectors with concentration 10, a
mixing g of 4 layers and a classifier f of 4 layers of width 100 with a unit-norm head: the setting
of the theorem. Too few classes, with which identification must fail, are measured too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.science.target import Measurement, Target
from sae.metrics.identifiability import Identification, Labelled, identify
from sae.worlds import NonlinearMixing, SphereLatents


def world(**settings: Any) -> NonlinearMixing:
    """Return the world of the theorem, with some settings changed."""
    latents = SphereLatents(n_features=5, kappa=10.0)
    shape = {"mixing_layers": 4, "widths": [100] * 4, "unit_head": True, "steps": 3000}
    return NonlinearMixing(5, latents, **{**shape, **settings})


def measure(world: NonlinearMixing, twin: NonlinearMixing | None = None) -> Identification:
    """Measure how well the representation identifies the latents."""
    z, labels = world.sample("held_out", 0, 8192, 0)
    return identify(
        world.network,
        Labelled(world.mixing(z), z, labels),
        untrained=world.untrained_network(),
        twin=None if twin is None else twin.network,
        untrained_twin=None if twin is None else twin.untrained_network(),
        logits=world.network.logits,
        classes=world.classes,
        scale=world.expected_scale,
    )


def run() -> Iterator[Measurement]:
    """Yield the measurements of two networks, of instance labels and of too few classes."""
    first, second = world(), world(network_seed=1)
    results = [measure(first, second), measure(second)]
    each = lambda name: tuple(getattr(result, name) for result in results)
    yield Measurement("R2 y -> z", each("y_to_z"), "about 1", low=0.95)
    yield Measurement("R2 y -> z, untrained network", each("y_to_z_untrained"))
    yield Measurement("R2 x -> z, raw data", each("x_to_z"))
    yield Measurement("R2 between the two seeds", (results[0].cross_seed,), low=0.95)
    yield Measurement("R2 between them untrained", (results[0].cross_seed_untrained,))
    yield Measurement("orthogonality error, scale 1 / kappa", each("orthogonality_error"))
    yield Measurement("warnings", tuple(float(len(result.warnings)) for result in results), high=0)
    instance = measure(world(labels="instance", instances=4))
    yield Measurement("instance labels, 4 a class: R2 y -> z", (instance.y_to_z,), low=0.95)
    few = measure(world(classes=4, steps=1500))
    yield Measurement("4 classes: R2 y -> z", (few.y_to_z,))
    yield Measurement("4 classes: R2 x -> z, raw data", (few.x_to_z,))
    yield Measurement("4 classes: warnings", (float(len(few.warnings)),), low=1)


SOURCE = "Reizinger et al., arXiv 2410.21869: R2 tends to 1 in their simulations"
TARGETS = [Target("identification", SOURCE, run)]

"""Step 1 alone: latents on a sphere, nonlinear data, and a classifier told which class they are of.

5 latents, von Mises-Fisher around 100 class vectors with concentration 10, g of 4 layers, f of 4
layers of 100 with a head of unit norm: the setting of the theorem. What must fail stands beside it:
too few classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.science.target import Measurement, Target
from sae.metrics.identifiability import Identification, Labelled, identify
from sae.worlds import NonlinearMixing, SphereLatents


def world(**settings: Any) -> NonlinearMixing:
    latents = SphereLatents(n_features=5, kappa=10.0)
    shape = {"mixing_layers": 4, "widths": [100] * 4, "unit_head": True, "steps": 3000}
    return NonlinearMixing(5, latents, **{**shape, **settings})


def looked_at(one: NonlinearMixing, twin: NonlinearMixing | None = None) -> Identification:
    z, labels = one.sample("held_out", 0, 8192, 0)
    return identify(
        one.network,
        Labelled(one.mixing(z), z, labels),
        untrained=one.untrained_network(),
        twin=None if twin is None else twin.network,
        untrained_twin=None if twin is None else twin.untrained_network(),
        logits=one.network.logits,
        classes=one.classes,
        scale=one.expected_scale,
    )


def run() -> Iterator[Measurement]:
    one, other = world(), world(network_seed=1)
    seen = [looked_at(one, other), looked_at(other)]
    each = lambda name: tuple(getattr(found, name) for found in seen)
    yield Measurement("R2 y -> z", each("y_to_z"), "about 1", low=0.95)
    yield Measurement("R2 y -> z, untrained network", each("y_to_z_untrained"))
    yield Measurement("R2 x -> z, raw data", each("x_to_z"))
    yield Measurement("R2 between the two seeds", (seen[0].cross_seed,), low=0.95)
    yield Measurement("R2 between them untrained", (seen[0].cross_seed_untrained,))
    yield Measurement("orthogonality error, scale 1 / kappa", each("orthogonality_error"))
    yield Measurement("warnings", tuple(float(len(found.warnings)) for found in seen), high=0)
    instance = looked_at(world(labels="instance", instances=4))
    yield Measurement("instance labels, 4 a class: R2 y -> z", (instance.y_to_z,), low=0.95)
    few = looked_at(world(classes=4, steps=1500))
    yield Measurement("4 classes: R2 y -> z", (few.y_to_z,))
    yield Measurement("4 classes: R2 x -> z, raw data", (few.x_to_z,))
    yield Measurement("4 classes: warnings", (float(len(few.warnings)),), low=1)


SOURCE = "Reizinger et al., arXiv 2410.21869: R2 tends to 1 in their simulations"
TARGETS = [Target("identification", SOURCE, run)]

"""Step 1: is what a network represents linear in the latents behind its data?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae.errors import UserError

Net = Callable[[Tensor], Tensor]

# Above these a label settles the representation, or the latents settle the label.
COLLAPSED_SHARE, SEPARABLE_ACCURACY = 0.9, 0.95


def linear_r2(source: Tensor, target: Tensor) -> float:
    """R^2 of the best affine map source -> target: least squares on the first half of the samples,
    scored on the second, 1 - sum (t - t')^2 / sum (t - mean t)^2 a dimension, mean over dimensions.

    source [n, a], target [n, b]; dimensions of the target that are constant are left out, and NaN
    is what is left without any. Can be below 0. Raises UserError for fewer than 2 (a + 2) samples.
    """
    n = len(source) // 2
    if len(source) != len(target) or n < source.shape[1] + 2:
        raise UserError(
            f"{len(source)} and {len(target)} samples of {source.shape[1]} dimensions do not do "
            f"for a fit; give both alike, and at least {2 * source.shape[1] + 4}"
        )
    source, target = source.double(), target.double()
    # Centred on the half that is fitted, which is an intercept.
    source, target = source - source[:n].mean(0), target - target[:n].mean(0)
    fitted = torch.linalg.lstsq(source[:n], target[:n], driver="gelsd").solution
    held_out = target[n:]
    total = (held_out - held_out.mean(0)).square().sum(0)
    varies = total > 1e-12 * held_out.square().sum(0)
    error = (held_out - source[n:] @ fitted).square().sum(0)
    return (1 - error[varies] / total[varies]).mean().item()


def linear_r2_ceiling(z: Tensor, d: int) -> float:
    """The most that `linear_r2` from d dimensions to z [n, features] can be, were they the best
    linear ones: the d largest eigenvalues of z's correlations, over their sum. d / features for
    latents that do not correlate."""
    correlations = torch.corrcoef(z.double().T[z.std(0) > 0])
    values = torch.linalg.eigvalsh(torch.atleast_2d(correlations))
    return (values[-d:].sum() / values.sum()).item()


def orthogonality_error(y: Tensor, z: Tensor, scale: float | None = None) -> float:
    """mean_i |sigma_i(A) * scale - 1| for z = y A, least squares without an intercept.

    0 where A is orthogonal but for a factor 1 / scale. Theory says 1 / kappa for latents from a von
    Mises-Fisher distribution of that concentration under a head of unit norm (Reizinger et al.,
    arXiv 2410.21869). Left out, scale is 1 / mean sigma: any factor does then.
    """
    A = torch.linalg.lstsq(y.double(), z.double(), driver="gelsd").solution
    sigma = torch.linalg.svdvals(A)
    scale = 1 / sigma.mean().item() if scale is None else scale
    return (sigma * scale - 1).abs().mean().item()


def label_share(y: Tensor, labels: Tensor) -> float:
    """Share of the variance of y [n, d] that its labels int64 [n] explain, corrected for their
    number: 0 for labels that say nothing, 1 where all of a label have one y (neural collapse)."""
    _, label = labels.unique(return_inverse=True)
    y, count = y.double(), torch.bincount(label)
    if len(count) == len(y):
        raise UserError(f"every one of {len(y)} samples has a label of its own; give more samples")
    means = y.new_zeros(len(count), y.shape[1]).index_add_(0, label, y) / count[:, None]
    within = (y - means[label]).square().sum().item() / (len(y) - len(count))
    return 1 - within / (y.var(0).sum().item())


@dataclass(frozen=True)
class Labelled:
    """Samples to identify on: data x [n, ...], the latents z [n, features] behind them where they
    are known, labels int64 [n] where the network was trained to tell them."""

    x: Tensor
    z: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Identification:
    """What `identify` measured. R^2 are `linear_r2`; None where there was nothing to measure by.

    Attributes:
        samples: half to fit on, half to score on.
        z_to_y, y_to_z: R^2 between latents and representation; `_untrained` of the same network
            with its starting weights, `x_to_z` of the data themselves.
        y_to_z_ceiling: the most that so many dimensions can reach.
        cross_seed: mean R^2 between the representation and that of a network trained from another
            seed, both ways: needs no latents. `_untrained`: of the two before training.
        orthogonality_error: see there.
        accuracy, loss, chance_loss: of the network's labels; chance is ln(number of labels).
        label_share: of the representation.
        warnings: in words.
    """

    samples: int
    z_to_y: float | None = None
    z_to_y_untrained: float | None = None
    y_to_z: float | None = None
    y_to_z_untrained: float | None = None
    y_to_z_ceiling: float | None = None
    x_to_z: float | None = None
    z_to_x: float | None = None
    cross_seed: float | None = None
    cross_seed_untrained: float | None = None
    orthogonality_error: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    chance_loss: float | None = None
    label_share: float | None = None
    warnings: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        """Plain data for JSON, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@torch.no_grad()
def identify(
    net: Net,
    data: Labelled,
    *,
    untrained: Net | None = None,
    twin: Net | None = None,
    untrained_twin: Net | None = None,
    logits: Net | None = None,
    classes: int | None = None,
    scale: float | None = None,
) -> Identification:
    """How linear the representation y = net(x) is in the latents, with its controls.

    An untrained network reaches an R^2 of 0.6 to 0.7, and data themselves often do: only the
    difference speaks.

    Args:
        net: x [n, ...] to y [n, d].
        data: fresh samples; 8,192 are customary.
        untrained: `net` with its starting weights.
        twin: a network trained on the same task from another seed; `untrained_twin`: before that.
        logits: y to logits of the labels.
        classes: how many the labels distinguish, where that is not the number of labels.
        scale: of `orthogonality_error`.
    """
    x, z, labels = data.x, data.z, data.labels
    y = net(x)
    got: dict[str, Any] = {"samples": len(x)}
    flat = x.flatten(1)
    if z is not None:
        got |= {
            "z_to_y": linear_r2(z, y),
            "y_to_z": linear_r2(y, z),
            "y_to_z_ceiling": linear_r2_ceiling(z, y.shape[1]),
            "x_to_z": linear_r2(flat, z),
            "z_to_x": linear_r2(z, flat),
            "orthogonality_error": orthogonality_error(y, z, scale),
        }
        if untrained is not None:
            before = untrained(x)
            got |= {"z_to_y_untrained": linear_r2(z, before)}
            got |= {"y_to_z_untrained": linear_r2(before, z)}
    if twin is not None:
        got["cross_seed"] = _equivalence(y, twin(x))
        if untrained is not None and untrained_twin is not None:
            got["cross_seed_untrained"] = _equivalence(untrained(x), untrained_twin(x))
    if labels is not None:
        got["label_share"] = label_share(y, labels)
        if logits is not None:
            said = logits(y)
            got["accuracy"] = (said.argmax(1) == labels).double().mean().item()
            got["loss"] = cross_entropy(said, labels).item()
            got["chance_loss"] = math.log(said.shape[1])
            classes = said.shape[1] if classes is None else classes
    return Identification(**got, warnings=_warnings(got, z, classes))


def _equivalence(y: Tensor, other: Tensor) -> float:
    return (linear_r2(y, other) + linear_r2(other, y)) / 2


def _warnings(got: dict[str, Any], z: Tensor | None, classes: int | None) -> list[str]:
    said = []
    share, accuracy = got.get("label_share", 0.0), got.get("accuracy", 0.0)
    if share > COLLAPSED_SHARE or accuracy > SEPARABLE_ACCURACY:
        measured = f"the label explains {share:.0%} of the representation"
        if "accuracy" in got:
            measured = f"accuracy {accuracy:.3f}, loss {got['loss']:.3f}, {measured}"
        said.append(
            f"The classes are separable ({measured}): a network need only keep which class it is, "
            f"so its representation collapses onto the classes and the latents cannot be "
            f"identified. Give classes that overlap."
        )
    if z is not None and classes is not None and classes <= z.shape[1]:
        said.append(
            f"{classes} classes cannot tell {z.shape[1]} latents apart: their differences do not "
            f"span so many dimensions. Give more than {z.shape[1]}."
        )
    for name, words in (("y_to_z", "latents from representation"), ("cross_seed", "across seeds")):
        control = got.get(f"{name}_untrained")
        if control is not None and got[name] <= control:
            said.append(
                f"R2 {words} is {got[name]:.3f}, no more than the {control:.3f} of an untrained "
                f"network: training did not identify anything."
            )
    return said

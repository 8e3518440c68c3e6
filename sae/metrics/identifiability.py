"""Identifiability: is a network's representation linear in the latents behind its data?"""

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

# Above these the label determines the representation, or the latents determine the label.
COLLAPSED_SHARE, SEPARABLE_ACCURACY = 0.9, 0.95


def linear_r2(source: Tensor, target: Tensor) -> float:
    """Return R^2 of the best affine map from source to target.

    The map is fitted by least squares on the first half of the samples and scored on the second.
    R^2 is 1 - sum (t - t')^2 / sum (t - mean t)^2 per dimension, averaged over the dimensions of
    the target that vary. It can be below 0.

    Args:
        source: [n, a].
        target: [n, b].

    Returns:
        R^2; NaN if no dimension of the target varies.

    Raises:
        UserError: the numbers of samples differ, or n is below 2 (a + 2).
    """
    n = len(source) // 2
    if len(source) != len(target) or n < source.shape[1] + 2:
        raise UserError(
            f"{len(source)} and {len(target)} samples of {source.shape[1]} dimensions cannot be "
            f"fitted; give equally many, at least {2 * source.shape[1] + 4}"
        )
    source, target = source.double(), target.double()
    # Centring on the fitted half replaces an intercept.
    source, target = source - source[:n].mean(0), target - target[:n].mean(0)
    fitted = torch.linalg.lstsq(source[:n], target[:n], driver="gelsd").solution
    held_out = target[n:]
    total = (held_out - held_out.mean(0)).square().sum(0)
    varies = total > 1e-12 * held_out.square().sum(0)
    error = (held_out - source[n:] @ fitted).square().sum(0)
    return (1 - error[varies] / total[varies]).mean().item()


def linear_r2_ceiling(z: Tensor, d: int) -> float:
    """Return the largest possible `linear_r2` from any d dimensions to z [n, features].

    It is the sum of the d largest eigenvalues of z's correlation matrix over the sum of all, so
    d / features for uncorrelated latents.
    """
    correlations = torch.corrcoef(z.double().T[z.std(0) > 0])
    values = torch.linalg.eigvalsh(torch.atleast_2d(correlations))
    return (values[-d:].sum() / values.sum()).item()


def orthogonality_error(y: Tensor, z: Tensor, scale: float | None = None) -> float:
    """Return mean_i |sigma_i(A) * scale - 1|, where A is the least-squares solution of z = y A.

    It is 0 if A is orthogonal up to the factor 1 / scale.

    Args:
        y: representation [n, d].
        z: latents [n, features].
        scale: the expected factor. Theory predicts 1 / kappa for latents from a von Mises-Fisher
            distribution of concentration kappa under a head of unit norm (Reizinger et al., arXiv
            2410.21869). The default 1 / mean sigma allows any factor.
    """
    A = torch.linalg.lstsq(y.double(), z.double(), driver="gelsd").solution
    sigma = torch.linalg.svdvals(A)
    scale = 1 / sigma.mean().item() if scale is None else scale
    return (sigma * scale - 1).abs().mean().item()


def label_share(y: Tensor, labels: Tensor) -> float:
    """Return the share of the variance of y [n, d] that labels int64 [n] explain.

    It is corrected for the number of labels: 0 for unrelated labels, 1 if all samples of a label
    have the same y (neural collapse).

    Raises:
        UserError: every sample has a label of its own.
    """
    _, label = labels.unique(return_inverse=True)
    y, count = y.double(), torch.bincount(label)
    if len(count) == len(y):
        raise UserError(f"each of the {len(y)} samples has its own label; give more samples")
    means = y.new_zeros(len(count), y.shape[1]).index_add_(0, label, y) / count[:, None]
    within = (y - means[label]).square().sum().item() / (len(y) - len(count))
    return 1 - within / (y.var(0).sum().item())


@dataclass(frozen=True)
class Labelled:
    """Samples for `identify`.

    Attributes:
        x: data [n, ...].
        z: the latents behind them [n, features], if known.
        labels: int64 [n], if the network was trained to predict them.
    """

    x: Tensor
    z: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Identification:
    """Results of `identify`. Each R^2 is a `linear_r2`; None means that inputs for it were missing.

    Attributes:
        samples: number of samples; half to fit on, half to score on.
        z_to_y: R^2 from latents to representation.
        z_to_y_untrained: the same for the network with its initial weights.
        y_to_z: R^2 from representation to latents.
        y_to_z_untrained: the same for the network with its initial weights.
        y_to_z_ceiling: the largest value that so many dimensions can reach.
        x_to_z: R^2 from the data to the latents.
        z_to_x: R^2 from the latents to the data.
        cross_seed: mean R^2, both ways, between the representation and that of a network trained
            from another seed; needs no latents.
        cross_seed_untrained: the same for both networks before training.
        orthogonality_error: see the function of that name.
        accuracy: share of labels that the network predicts.
        loss: its cross-entropy in nats.
        chance_loss: ln(number of labels).
        label_share: share of the representation's variance that labels explain.
        warnings: reasons to distrust the results, in sentences.
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
        """Return plain data for JSON, without what was not measured."""
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
    """Measure how linear the representation y = net(x) is in the latents, with baselines.

    An untrained network reaches an R^2 of 0.6 to 0.7, and often the data themselves do, so only
    the difference to them is meaningful.

    Args:
        net: maps x [n, ...] to y [n, d].
        data: fresh samples; 8,192 are customary.
        untrained: `net` with its initial weights.
        twin: a network trained on the same task from another seed.
        untrained_twin: `twin` with its initial weights.
        logits: maps y to logits of the labels.
        classes: number of classes, if it differs from the number of logits.
        scale: see `orthogonality_error`.
    """
    x, z, labels = data.x, data.z, data.labels
    y = net(x)
    results: dict[str, Any] = {"samples": len(x)}
    flat = x.flatten(1)
    if z is not None:
        results |= {
            "z_to_y": linear_r2(z, y),
            "y_to_z": linear_r2(y, z),
            "y_to_z_ceiling": linear_r2_ceiling(z, y.shape[1]),
            "x_to_z": linear_r2(flat, z),
            "z_to_x": linear_r2(z, flat),
            "orthogonality_error": orthogonality_error(y, z, scale),
        }
        if untrained is not None:
            before = untrained(x)
            results |= {"z_to_y_untrained": linear_r2(z, before)}
            results |= {"y_to_z_untrained": linear_r2(before, z)}
    if twin is not None:
        results["cross_seed"] = _equivalence(y, twin(x))
        if untrained is not None and untrained_twin is not None:
            results["cross_seed_untrained"] = _equivalence(untrained(x), untrained_twin(x))
    if labels is not None:
        results["label_share"] = label_share(y, labels)
        if logits is not None:
            predicted = logits(y)
            results["accuracy"] = (predicted.argmax(1) == labels).double().mean().item()
            results["loss"] = cross_entropy(predicted, labels).item()
            results["chance_loss"] = math.log(predicted.shape[1])
            classes = predicted.shape[1] if classes is None else classes
    return Identification(**results, warnings=_warnings(results, z, classes))


def _equivalence(y: Tensor, other: Tensor) -> float:
    return (linear_r2(y, other) + linear_r2(other, y)) / 2


def _warnings(results: dict[str, Any], z: Tensor | None, classes: int | None) -> list[str]:
    warnings = []
    share, accuracy = results.get("label_share", 0.0), results.get("accuracy", 0.0)
    if share > COLLAPSED_SHARE or accuracy > SEPARABLE_ACCURACY:
        measured = f"the label explains {share:.0%} of the representation"
        if "accuracy" in results:
            measured = f"accuracy {accuracy:.3f}, loss {results['loss']:.3f}, {measured}"
        warnings.append(
            f"The classes are separable ({measured}): the network only needs to represent the "
            f"class, so its representation collapses onto the classes and the latents cannot be "
            f"identified. Give classes that overlap."
        )
    if z is not None and classes is not None and classes <= z.shape[1]:
        warnings.append(
            f"{classes} classes cannot tell {z.shape[1]} latents apart, because their differences "
            f"span too few dimensions. Give more than {z.shape[1]} classes."
        )
    for name, words in (("y_to_z", "latents from representation"), ("cross_seed", "across seeds")):
        baseline = results.get(f"{name}_untrained")
        if baseline is not None and results[name] <= baseline:
            warnings.append(
                f"R2 {words} is {results[name]:.3f}, not above the {baseline:.3f} of an "
                f"untrained network: training did not identify anything."
            )
    return warnings

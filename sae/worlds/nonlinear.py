"""A nonlinear world: latents behind a function g, seen through a trained classifier f."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from sae.activations.batch import Batch, PositionCounts, Split
from sae.activations.capabilities import KnownFeatures, LabelledNetwork
from sae.activations.source import Source
from sae.errors import UserError
from sae.worlds.cache import cached
from sae.worlds.latents import Latents, SparseLatents
from sae.worlds.network import Classifier, Mixing
from sae.worlds.seeding import SPLITS, generator_of
from sae.worlds.world import HOOK, described
from sae_kernels.codes import Codes

_TRAINING = 2  # stream of the samples that the classifier is trained on; belongs to no split


class NonlinearMixing(Source):
    """A world with activations y = f(g(z)) at the hook `world`.

    Latents z generate data x = g(z), and y is the layer before the head of a network f that was
    trained to predict the label of x. "From superposition to sparse codes" (Klindt et al., arXiv
    2503.01824) claims that y is then linear in z. Nothing is linear before training, and f never
    sees z.

    The classifier is trained on first use, from these settings only, which takes half a minute; it
    is kept on disk (`sae.worlds.cache`).

    Args:
        d_in: width of y: n_features of the latents, or less, so that f must superpose them.
        latents: the distribution of z and its class: SparseLatents, SphereLatents or
            PrototypeLatents.
        classes: number of classes.
        labels: what f predicts: `class`, or `instance`: the sample, out of `instances` per class,
            of which x is a view; a view is any draw of the same class. Such labels carry no meaning
            of their own (Ibrahim et al. 2024, "Occam's razor for self-supervised learning": DIET).
        instances: number of samples of each class, for `instance`.
        mixing_layers: layers of g; 1 makes it linear.
        widths: widths of the hidden layers of f.
        unit_head: keep the rows of f's head at norm 1.
        steps: training steps of f.
        batch_size: new samples per step.
        lr: highest learning rate.
        world_seed: seed of g and of the classes.
        network_seed: seed of f's starting weights and of its training samples.

    Raises:
        UserError: A setting is out of range.
    """

    def __init__(
        self,
        d_in: int = 16,
        latents: Latents | None = None,
        *,
        classes: int = 100,
        labels: Literal["class", "instance"] = "class",
        instances: int = 1,
        mixing_layers: int = 3,
        widths: list[int] | None = None,
        unit_head: bool = False,
        steps: int = 3000,
        batch_size: int = 512,
        lr: float = 2e-3,
        world_seed: int = 0,
        network_seed: int = 0,
    ) -> None:
        latents = SparseLatents() if latents is None else latents
        widths = [128] * 4 if widths is None else list(widths)
        for name, value, least in (
            ("d_in", d_in, 1),
            ("classes", classes, 2),
            ("instances", instances, 1),
            ("mixing_layers", mixing_layers, 1),
            ("widths", min(widths, default=1), 1),
            ("steps", steps, 1),
            ("batch_size", batch_size, 2),
        ):
            if value < least:
                raise UserError(f"{name}={value} is out of range; give at least {least}")
        if not 0 < lr < math.inf:
            raise UserError(f"lr={lr} must be a finite number above 0")
        if labels not in ("class", "instance"):
            raise UserError(f"labels={labels!r} is not known; choose class or instance")
        if (labels == "instance") != (instances > 1):
            raise UserError(
                f"instances={instances} does not fit labels={labels}: give more than 1 for "
                f"instance, and leave it out for class"
            )
        self.widths = {HOOK: d_in}
        self.d_in, self.n_features = d_in, latents.n_features
        self.latents, self.classes, self.instances = latents, classes, instances
        self.unit_head = unit_head
        self._network = {"steps": steps, "batch_size": batch_size, "lr": lr}
        self._hidden = widths
        self._settings = {
            "world": type(self).__name__,
            "d_in": d_in,
            "latents": described(latents),
            "classes": classes,
            "labels": labels,
            "instances": instances,
            "mixing_layers": mixing_layers,
            "widths": widths,
            "unit_head": unit_head,
            **self._network,
            "world_seed": world_seed,
            "network_seed": network_seed,
        }
        self._branch: tuple[int, ...] = ()
        self._device = torch.device("cpu")
        self._handed_out: dict[int, int] = {}

    @cached_property
    def class_vectors(self) -> Tensor:
        """Vectors that distinguish the classes, float32 [classes, n_features]."""
        seed = self._settings["world_seed"]
        return self.latents.class_vectors(self.classes, generator_of(seed, 1))

    @cached_property
    def mixing(self) -> Mixing:
        """The function g from z [batch, n_features] to x of the same shape."""
        seed, layers = self._settings["world_seed"], self._settings["mixing_layers"]
        return Mixing(self.n_features, layers, 1000, generator_of(seed, 2))

    def sample(self, split: Split, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the true z of `block` with the same arguments, and the labels that f predicts.

        For metrics only.

        Returns:
            z, float32 [size, n_features], and labels, int64 [size].
        """
        return self._sample(size, (seed, SPLITS[split], index, 0, *self._branch))

    def _sample(self, size: int, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        generator = generator_of(*key)
        z, labels = self.latents.draw(size, self.class_vectors, generator)
        if self.instances > 1:
            views = torch.randint(self.instances, labels.shape, generator=generator)
            labels = labels * self.instances + views
        return z, labels

    def codes(self, split: Split, index: int, size: int, seed: int) -> Codes:
        """Return the same z as sparse codes: ragged, indices increasing in each row, on the CPU."""
        z, _ = self.sample(split, index, size, seed)
        rows, indices = z.nonzero(as_tuple=True)
        offsets = torch.zeros(size + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(rows, minlength=size), 0, out=offsets[1:])
        return Codes(z[rows, indices], indices, self.n_features, offsets)

    @property
    def expected_scale(self) -> float | None:
        """The scale of the linear map from y to z if theory gives one (a unit head on a sphere).

        Then z = y A, where kappa A is orthogonal; the scale is kappa.
        """
        return self.latents.expected_scale if self.unit_head else None

    def untrained_network(self) -> Classifier:
        """Return f with its starting weights."""
        network = Classifier(
            self.n_features,
            self._hidden,
            self.d_in,
            self.classes * self.instances,
            unit_head=self.unit_head,
            seed=self._settings["network_seed"],
        )
        return network.requires_grad_(False)

    @cached_property
    def network(self) -> Classifier:
        """The trained classifier f."""
        network = self.untrained_network()

        def train() -> dict[str, Tensor]:
            steps = iter(range(1, 2**62))
            network.requires_grad_(True)

            def draw(size: int) -> tuple[Tensor, Tensor]:
                key = (self._settings["network_seed"], _TRAINING, next(steps))
                z, labels = self._sample(size, key)
                return self.mixing(z), labels

            network.fit(draw, **self._network)
            return network.state_dict()

        network.load_state_dict(
            cached(self._settings, train, "training the classifier of this world")
        )
        return network.eval().requires_grad_(False)

    @cached_property
    def truth(self) -> Tensor:
        """The best linear map from z to y, float32 [n_features, d_in] on the CPU.

        It is fitted by least squares with an intercept on 16,384 samples of its own. Unless y is
        linear in z there is no true dictionary; this map is the closest to one.
        """
        z, _ = self._sample(16_384, (self._settings["network_seed"], _TRAINING, 0))
        y = self.network(self.mixing(z)).double()
        z = z.double()
        return torch.linalg.lstsq(z - z.mean(0), y - y.mean(0)).solution.float()

    def with_network_seed(self, network_seed: int) -> NonlinearMixing:
        """Return the same world with a network of another seed, trained independently."""
        settings = {**self._settings, "network_seed": network_seed, "latents": self.latents}
        del settings["world"]
        return type(self)(**settings)

    parents = None  # independent latents, no hierarchy

    def known_features(self) -> KnownFeatures:
        return cast(KnownFeatures, self)  # pyright does not match cached_property with a property

    def labelled_network(self) -> LabelledNetwork:
        return cast(LabelledNetwork, self)

    def out_of_distribution(self) -> Self | None:
        """Return the same network on combinations of latents that it was never trained on.

        The samples are independent of this world's. None if every combination occurs here.
        """
        latents = self.latents.out_of_distribution()
        if latents is None:
            return None
        self.network, self.truth, self.class_vectors, self.mixing  # noqa: B018 (computed once for both)
        other = copy.copy(self)
        other.latents, other._branch, other._handed_out = latents, (1,), {}
        return other

    def metadata(self) -> dict[str, Any]:
        """Return the settings of this world."""
        return dict(self._settings)

    @property
    def counts(self) -> PositionCounts:
        """Number of rows in the training blocks made so far; a world leaves none out."""
        return PositionCounts(kept=sum(self._handed_out.values()))

    def setup(self, device: torch.device | str = "cpu") -> None:
        """Train the classifier or load it, and return blocks on `device` from now on."""
        self._device = torch.device(device)
        self.network  # noqa: B018

    @torch.no_grad()
    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        """Return `size` new samples; splits and indices are independent of each other."""
        z, _ = self.sample(split, index, size, seed)
        if split == "train":
            self._handed_out[index] = size
        acts = torch.cat([self.network(self.mixing(part)) for part in z.split(8192)])
        return Batch({HOOK: acts.to(self._device)})

"""Hierarchical features: trees in which a child fires only if its parent does."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor

from sae.errors import UserError
from sae.worlds.support import Active, Sampler


@dataclass(frozen=True, kw_only=True)
class Hierarchy(Active):
    """Trees of features.

    Each of the first `trees` root features has `children` children, each child has as many, and so
    on for `depth` levels below the roots. The other roots have no children. Features are numbered
    level by level: the roots, the children of root 0, those of root 1 and so on, then the
    grandchildren in the same order (see `parents`).

    Args:
        roots: distribution of the active roots.
        trees: number of roots with children.
        children: number of children of a parent.
        depth: number of levels below the roots.
        child_probability: probability that an active parent has an active child (exclusive), or
            that any given child of it is active (not exclusive).
        exclusive: at most one child of a parent is active, all equally often; otherwise children
            fire independently of each other.
        scaled: multiply the value drawn for a child by the value of its parent.
    """

    roots: Active
    trees: int = 4
    children: int = 4
    depth: int = 1
    child_probability: float = 0.5
    exclusive: bool = True
    scaled: bool = False

    def __post_init__(self) -> None:
        for name in ("trees", "children", "depth"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.child_probability <= 1:
            raise UserError(
                f"child_probability={self.child_probability} must be above 0 and at most 1"
            )

    @property
    def scaled_by_parent(self) -> bool:
        return self.scaled

    def levels(self, n: int) -> list[int]:
        """Return the number of features on each level, roots first.

        Raises:
            UserError: n is too small.
        """
        below = [self.trees * self.children**level for level in range(1, self.depth + 1)]
        if n - sum(below) < self.trees:
            raise UserError(
                f"trees={self.trees} of depth={self.depth} with children={self.children} need "
                f"n_features of at least {self.trees + sum(below)}; it is {n}"
            )
        return [n - sum(below), *below]

    def parents(self, n: int) -> Tensor:
        parents, start = [torch.full((self.levels(n)[0],), -1)], 0
        for level, size in enumerate(self.levels(n)[1:]):
            parents.append(start + torch.arange(size) // self.children)
            start += self.levels(n)[level]
        return torch.cat(parents)

    def frequencies(self, n: int) -> Tensor:
        share = self.child_probability / (self.children if self.exclusive else 1)
        parts = [self.roots.frequencies(self.levels(n)[0])]
        for size in self.levels(n)[1:]:
            parts.append(parts[-1][: size // self.children].repeat_interleave(self.children))
            parts[-1] *= share
        return torch.cat(parts)

    def sampler(self, n: int) -> Sampler:
        levels = self.levels(n)
        top = self.roots.sampler(levels[0])

        def draw(rows: int, generator: Generator) -> Tensor:
            parts = [top(rows, generator)]
            for size in levels[1:]:
                families = size // self.children
                if self.exclusive:
                    # One uniform number decides whether a child is active and which one.
                    u = torch.rand(rows, families, 1, generator=generator)
                    child = (u * (self.children / self.child_probability)).floor()
                    active = child == torch.arange(self.children)
                else:
                    u = torch.rand(rows, families, self.children, generator=generator)
                    active = u < self.child_probability
                active &= parts[-1][:, :families, None]
                parts.append(rearrange(active, "row family child -> row (family child)"))
            return torch.cat(parts, dim=1)

        return draw

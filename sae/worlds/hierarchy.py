"""Features that need another one: trees whose children fire only where their parent does."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sae.errors import UserError
from sae.worlds.support import Active, Sampler


@dataclass(frozen=True, kw_only=True)
class Hierarchy(Active):
    """Trees of features. The first `trees` features of `roots` each have `children`, those again,
    down to `depth` levels below; features of `roots` beyond have none.

    Features are laid out level by level: roots first, then the children of root 0, those of root 1
    and so on, then the grandchildren in the same order. `parents` says it.

    Args:
        roots: what is active at the top, a rule for the features that are nobody's child.
        trees: how many of them have children.
        children: of each.
        depth: levels below the roots.
        child_probability: that an active parent has an active child (exclusive), or that any one
            of its children is active (not exclusive).
        exclusive: at most one child of a parent is active, each as often as the others; otherwise
            they fire independently of each other.
        scaled: the value of a child is what is drawn for it times the value of its parent.
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
        """Number of features on each level, the roots' first; UserError where n is too small."""
        below = [self.trees * self.children**level for level in range(1, self.depth + 1)]
        if n - sum(below) < self.trees:
            raise UserError(
                f"trees={self.trees} of depth={self.depth} with children={self.children} need "
                f"n_features of at least {self.trees + sum(below)}; it is {n}"
            )
        return [n - sum(below), *below]

    def parents(self, n: int) -> Tensor:
        found, start = [torch.full((self.levels(n)[0],), -1)], 0
        for level, size in enumerate(self.levels(n)[1:]):
            found.append(start + torch.arange(size) // self.children)
            start += self.levels(n)[level]
        return torch.cat(found)

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
                    # One number says whether there is a child and which: u / p * children.
                    u = torch.rand(rows, families, 1, generator=generator)
                    one = (u * (self.children / self.child_probability)).floor()
                    chosen = one == torch.arange(self.children)
                else:
                    u = torch.rand(rows, families, self.children, generator=generator)
                    chosen = u < self.child_probability
                chosen &= parts[-1][:, :families, None]
                parts.append(chosen.view(rows, size))
            return torch.cat(parts, dim=1)

        return draw

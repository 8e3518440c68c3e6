"""The published inference-time optimisation, kept as the reference it is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.problem import Problem, at_least, positive
from sae.inference.result import InferenceResult


@torch.no_grad()
def log_codes(
    x: Tensor,
    dictionary: Tensor,
    penalty: float,
    *,
    iterations: int = 20_000,
    lr: float = 1e-3,
    start: float = -10.0,
    b: Tensor | None = None,
) -> InferenceResult:
    """The problem of non-negative `fista`, by Adam on s where z = exp(s) (O'Neill, Gumran & Klindt,
    ICML 2025: inference-time optimisation).

    No code is ever 0, and one that is small hardly moves: its gradient is multiplied by itself.
    For comparison only: it needs a hundred times the iterations of `fista` and ends further off.
    Adam is that of Kingma & Ba 2015 with their defaults besides `lr`. Their penalty, of a mean over
    dimensions and a mean over latents, is 2 d_sae / d_in times the one here.

    Args:
        x: [batch, d_in]; solved in float64 if x or the dictionary is float64, else in float32.
        dictionary: [d_sae, d_in].
        penalty: above 0, as in `fista`.
        iterations: of Adam, all of which are spent.
        lr: Adam's learning rate.
        start: every s.
        b: [d_in], subtracted from x.

    Returns:
        codes, all of them above 0; objective and gap of the lasso, as in `fista`.

    Raises:
        UserError: shapes that do not fit, or a setting out of range.
    """
    problem = Problem.of(x, dictionary, b)
    positive(penalty=penalty, lr=lr)
    at_least(iterations=iterations)
    atoms = problem.atoms
    # Adam sees only the direction of gradients, save for eps: the means of the paper are kept.
    share = 2 / max(problem.target.numel(), 1)

    def method(y: Tensor, _: slice) -> tuple[Tensor, int]:
        s = y.new_full((len(y), len(atoms)), start)
        mean, square = torch.zeros_like(s), torch.zeros_like(s)
        for step in range(1, iterations + 1):
            z = s.exp()
            gradient = torch.addmm(y, z, atoms, beta=-1) @ atoms.t()
            gradient.add_(penalty).mul_(z).mul_(share)
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            root = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
            s.addcdiv_(mean, root, value=-lr / (1 - 0.9**step))
        return s.exp(), iterations

    return problem.solve(method, penalty=penalty)

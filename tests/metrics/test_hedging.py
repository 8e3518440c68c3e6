"""Feature hedging against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from sae.metrics.hedging import hedging_rate

BEFORE = torch.tensor([[1.0, 0, 0], [0, 2.0, 0]])


def test_hedging_counts_changes_within_the_span_of_new_latents():
    # Row 0 changes from (1, 0, 0) to (.6, 0, .8), by (-.4, 0, .8). A length of .8 of this change
    # lies in the span of the new latent (0, 0, 5), and 0 of the change of row 1, so p is .4.
    widened = torch.tensor([[0.6, 0, 0.8], [0, 1, 0], [0, 0, 5.0]])
    rate, p0 = hedging_rate(BEFORE, widened, draws=400)
    # In three dimensions, the projection on a random line has E|cos| = 1/2 of the length. The
    # direction of row 1 does not change.
    assert p0 == pytest.approx(0.8**0.5 / 2 / 2, abs=0.02)
    assert rate == pytest.approx((0.4 - p0) / (1 - p0))
    assert hedging_rate(BEFORE, widened, draws=400) == (rate, p0)
    assert hedging_rate(BEFORE, widened, draws=400, seed=1)[1] != p0


def test_changes_outside_the_span_are_no_hedging():
    widened = torch.tensor([[0.6, 0.8, 0], [0, 1, 0], [0, 0, 1.0]])
    rate, p0 = hedging_rate(BEFORE, widened)
    assert rate == pytest.approx(-p0 / (1 - p0))
    assert hedging_rate(BEFORE, torch.cat([BEFORE, torch.ones(1, 3)])) == (0, 0)


@pytest.mark.parametrize(
    ("new", "p"),
    [([[0, 0, 5.0], [0, 0, 1.0]], 0.32), ([[0, 3.0, 0], [0, 0, 1.0]], 0.4)],
    ids=["same-direction", "different-directions"],
)
def test_hedging_with_several_new_latents(new, p):
    # Row 0 changes by (-.4, .48, .64), which has length .64 along the last axis and .8 along the
    # last two. The direction of row 1 does not change.
    widened = torch.tensor([[0.6, 0.48, 0.64], [0, 1, 0], *new])
    rate, p0 = hedging_rate(BEFORE, widened)
    assert rate * (1 - p0) + p0 == pytest.approx(p)

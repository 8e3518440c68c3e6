"""The learning-rate schedule."""

from __future__ import annotations

import pytest

from sae.training.optim_config import warmup_decay


def test_schedule_warms_up_stays_at_one_and_decays_above_zero():
    factors = [warmup_decay(t, 100, warmup=0.1, decay=0.2) for t in range(100)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10:80] == [1.0] * 70
    assert factors[80:] == pytest.approx([1 - i / 20 for i in range(20)])
    assert factors[-1] > 0


def test_schedule_without_warmup_and_decay_is_one():
    assert {warmup_decay(t, 7, warmup=0.0, decay=0.0) for t in range(7)} == {1.0}

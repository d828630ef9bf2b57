"""An alarm where images have changed, and none where chance alone has moved them."""

from __future__ import annotations

import numpy as np
import pytest

from vlmgate.gate.drift import FEWEST, Kept, shifts


def test_nothing_changed_no_alarm_in_ninety_nine_nights() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        kept = {f"c{i}": Kept.of(rng.standard_cauchy(200)) for i in range(3)}
        tonight = {f"c{i}": rng.standard_cauchy(150) for i in range(3)}
        alarms += any(shift.alarm for shift in shifts({k: v for k, v in kept.items() if v}, tonight))
    assert alarms <= 6  # 1 % of the nights, and three standard errors


def test_equal_values_are_no_change() -> None:
    """Shares of eight answers take nine values; a test that forgets ties would sound the alarm."""
    rng = np.random.default_rng(1)
    kept = Kept.of(rng.integers(0, 9, 500) / 8)
    assert kept is not None
    (shift,) = shifts({"answer_share": kept}, {"answer_share": rng.integers(0, 9, 4000) / 8})
    assert not shift.alarm and shift.gap < 0.08


def test_darker_pictures_raise_it() -> None:
    rng = np.random.default_rng(2)
    kept = Kept.of(rng.normal(0.5, 0.1, 300))
    assert kept is not None
    (shift,) = shifts({"exposure": kept}, {"exposure": rng.normal(0.4, 0.1, 300)})
    assert shift.alarm and shift.gap > 0.3 and shift.before == pytest.approx(0.5, abs=0.03)
    assert shift.now == pytest.approx(0.4, abs=0.03)


def test_a_change_of_no_account_is_none_however_many_images_show_it() -> None:
    rng = np.random.default_rng(3)
    kept = Kept.of(rng.normal(0, 1, 50_000))
    assert kept is not None
    (shift,) = shifts({"noise": kept}, {"noise": rng.normal(0.15, 1, 50_000)})
    assert shift.p_value < 1e-6 and not shift.alarm


def test_too_few_values_say_nothing() -> None:
    assert Kept.of([0.5] * (FEWEST - 1)) is None
    kept = Kept.of(np.arange(50.0))
    assert kept is not None
    assert shifts({"noise": kept}, {"noise": [None] * 500 + [1.0]}) == []

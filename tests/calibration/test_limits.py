"""The usual range of the picture, as a gate limits it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vlmgate.calibration.limits import FEWEST, usual_range
from vlmgate.gate.rules import parse_limit


def test_a_range_is_no_narrower_than_what_was_seen_and_few_honest_pictures_lie_beyond() -> None:
    rng = np.random.default_rng(1)
    beyond = []
    for _ in range(200):
        values = rng.lognormal(4, 0.5, 80)
        low, high = (limit.value for limit in usual_range("sharpness", values))
        assert low <= np.quantile(values, 0.005) and high >= np.quantile(values, 0.995)
        scale = stats.lognorm(0.5, scale=np.exp(4))
        beyond.append(scale.cdf(low) + scale.sf(high))
    assert np.mean(beyond) < 0.005, "each end holds 99.5 % with 95 % confidence"
    assert np.mean(np.array(beyond) > 0.01) < 0.1


def test_a_blurred_picture_lies_beyond_the_range_of_sharp_ones() -> None:
    values = np.random.default_rng(2).lognormal(5.8, 0.4, 80)  # as the sharp ones of the samples
    (low, _) = usual_range("sharpness", values)
    assert low.side == ">=" and not low.holds(4.4)  # 95 % of the samples blurred at sigma 2.5 lie below


@pytest.mark.parametrize("column", ["sharpness", "exposure", "contrast", "noise"])
def test_blank_frames_and_odd_values_give_limits_that_can_be_read_back(column: str) -> None:
    values = [0.0] * 27 + list(np.random.default_rng(3).uniform(0.1, 0.4, 60))
    for limit in usual_range(column, values):
        text = f"{limit.column} {limit.side} {limit.value:.12f}"
        assert parse_limit(text, 8).value == pytest.approx(limit.value)
        assert limit.value <= 4.0, "no more than ten times what was seen"
    assert usual_range(column, [0.2] * (FEWEST - 1)) == []
    assert len(usual_range(column, [0.2] * FEWEST)) == 2


def test_shares_stay_within_their_range() -> None:
    low, high = usual_range("exposure", np.random.default_rng(4).uniform(0.3, 0.6, 50))
    assert 0 < low.value < 0.3 and 0.6 < high.value < 1

"""Costs, against adding up by hand; and the rule for what to trust."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vlmgate.calibration.cost import Costs, Outcomes, bill, break_even, compare_policies
from vlmgate.calibration.figures import agreement, kappa
from vlmgate.errors import ConfigError

COSTS = Costs(escape=200, overkill=20, review=1.5, reviewer_miss=0.1, reviewer_false_alarm=0.02, overhead=7)


@pytest.fixture
def images() -> tuple[np.ndarray, Outcomes]:
    rng = np.random.default_rng(0)
    score = np.round(rng.random(200), 2)
    score[:5] = np.inf
    bad = rng.random(200) < 0.3
    rejects = np.where(rng.random(200) < 0.4 * np.minimum(score, 1), ~bad, bad)
    return score, Outcomes(bad, rejects)


def by_hand(accepted: np.ndarray, outcomes: Outcomes, costs: Costs) -> float:
    total = 0.0
    for a, bad, rejects in zip(accepted, outcomes.bad, outcomes.rejects, strict=True):
        if a:
            total += costs.escape * (bad and not rejects) + costs.overkill * (rejects and not bad)
        else:
            total += costs.review
            total += costs.reviewer_miss * costs.escape if bad else costs.reviewer_false_alarm * costs.overkill
    return total / len(accepted) * 1000 + costs.overhead


def test_every_threshold_costs_what_adding_up_says(images: tuple[np.ndarray, Outcomes]) -> None:
    score, outcomes = images
    found = bill(score, outcomes, COSTS)
    for i in (0, 1, len(found.thresholds) // 2, -1):
        accepted = score <= found.thresholds[i]
        assert found.gated[0, i] == pytest.approx(by_hand(accepted, outcomes, COSTS))
        assert found.routed[0, i] == pytest.approx(1 - accepted.mean())
    assert found.gated[0, found.cheapest[0]] == found.gated.min()


def worst_trusted(costs: Costs, says_good: bool) -> float:
    """Return the chance of being wrong from which on a reading is better looked at; infinite if never.

    Who accepts "good" pays p C_escape; who routes it pays C_review + p m C_escape + (1 − p) f C_overkill. These are
    equal at p = (C_review + f C_overkill) / ((1 − m) C_escape + f C_overkill). For a reading that rejects the part the
    two errors change places: p = (C_review + m C_escape) / ((1 − f) C_overkill + m C_escape).
    """
    missed, alarmed = costs.reviewer_miss * costs.escape, costs.reviewer_false_alarm * costs.overkill
    if says_good:
        kept, gained = costs.review + alarmed, costs.escape - missed + alarmed
    else:
        kept, gained = costs.review + missed, costs.overkill - alarmed + missed
    return kept / gained if gained > 0 else math.inf


def test_the_rule_is_where_both_ways_cost_the_same() -> None:
    p = worst_trusted(COSTS, says_good=True)
    assert p == pytest.approx((1.5 + 0.02 * 20) / ((1 - 0.1) * 200 + 0.02 * 20))
    trusted = p * COSTS.escape
    reviewed = COSTS.review + p * COSTS.reviewer_miss * COSTS.escape + (1 - p) * COSTS.reviewer_false_alarm * 20
    assert trusted == pytest.approx(reviewed)
    q = worst_trusted(COSTS, says_good=False)
    reviewed = COSTS.review + (1 - q) * COSTS.reviewer_miss * 200 + q * COSTS.reviewer_false_alarm * 20
    assert q * COSTS.overkill == pytest.approx(reviewed)


def test_the_cheapest_threshold_is_the_rule_where_the_chance_of_being_wrong_is_known() -> None:
    # A hundred groups of 10,000 readings that all say "good", of which a known share is wrong.
    share = np.linspace(0, 0.05, 100)
    score = np.repeat(share, 10_000)
    bad = np.tile(np.arange(10_000) / 10_000, 100) < score
    found = bill(score, Outcomes(bad, np.zeros(len(bad), bool)), COSTS)
    best = found.thresholds[found.cheapest[0]]
    limit = worst_trusted(COSTS, says_good=True)
    assert share[share <= limit].max() == pytest.approx(best, abs=0.0006)


def test_break_even_is_where_the_bills_meet(images: tuple[np.ndarray, Outcomes]) -> None:
    score, outcomes = images
    accepted = score <= 0.4
    found = break_even(accepted, outcomes, COSTS)
    assert sum(value is not None for value in found.values()) >= 2
    for name, value in found.items():
        if value is not None:
            costs = replace(COSTS, **{name: value})
            everything = by_hand(np.zeros(200, bool), outcomes, costs) - costs.overhead
            assert by_hand(accepted, outcomes, costs) == pytest.approx(everything)


def test_policies_stand_beside_one_another(images: tuple[np.ndarray, Outcomes]) -> None:
    score, outcomes = images
    accepted = score <= 0.3
    found = compare_policies(score, outcomes, COSTS, accepted)
    rows = {policy.name: policy for policy in found.policies}
    assert rows["review all"].cost == pytest.approx(by_hand(np.zeros(200, bool), outcomes, COSTS) - COSTS.overhead)
    assert rows["review none"].cost == pytest.approx(by_hand(np.ones(200, bool), outcomes, COSTS))
    assert rows["guaranteed gate"].cost == pytest.approx(by_hand(accepted, outcomes, COSTS))
    assert rows["random, same share"].reviewed == pytest.approx(rows["guaranteed gate"].reviewed)
    assert all(policy.low <= policy.cost <= policy.high for policy in found.policies)
    assert rows["cheapest gate, cross-val."].cost <= rows["review none"].cost


def test_a_rarer_defect_makes_reviewing_everything_dearer_in_comparison(
    images: tuple[np.ndarray, Outcomes],
) -> None:
    score, outcomes = images
    rare = np.where(outcomes.bad, 0.01 / outcomes.bad.sum(), 0.99 / (~outcomes.bad).sum())
    found = compare_policies(score, outcomes, COSTS, None, rare)
    rows = {policy.name: policy for policy in found.policies}
    assert rows["review all"].cost == pytest.approx(1000 * (1.5 + 0.01 * 0.1 * 200 + 0.99 * 0.02 * 20))
    assert rows["review all"].escapes == pytest.approx(1.0)


@pytest.mark.parametrize("field", ["escape", "review", "reviewer_miss", "reviewer_false_alarm"])
def test_costs_that_are_none_are_refused(field: str) -> None:
    for value in (-1.0, float("nan")) + ((1.5,) if field.startswith("reviewer") else ()):
        with pytest.raises(ConfigError, match=field.replace("_", "-")):
            Costs(**{field: value})


def test_agreement_counts() -> None:
    told = agreement(
        ["none", "none", "none", "dent", "dent", "crack"],
        ["none", "dent", None, "dent", "none", "dent"],
        "none",
        [["none", "none"], ["dent", "none"], ["none"]],
    )
    assert told.effectiveness == (2, 6)
    assert told.misses == (1, 3)
    assert told.false_alarms == (1, 3)
    assert told.repeatability == (1, 2)


def test_kappa_of_a_textbook_table() -> None:
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(["y"], ["y"]) is None

"""Figures of quality, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmgate.calibration.figures import FIGURES, Ladder, measure, resampled


def by_hand(score: np.ndarray, wrong: np.ndarray, orders: int = 3000) -> tuple[float, float]:
    """Return AURC and AUGRC as means over random orders of equals."""
    rng = np.random.default_rng(1)
    count, areas = len(score), []
    for _ in range(orders):
        errors = np.cumsum(wrong[np.lexsort((rng.random(count), score))])
        areas.append(((errors / np.arange(1, count + 1)).mean(), (errors / count).mean()))
    return tuple(np.mean(areas, axis=0))


@pytest.fixture
def readings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 5, 40).astype(float)  # many equals
    return score, (rng.random(40) < 0.1 + 0.15 * score).astype(float)


def test_areas_are_means_over_every_order_of_equals(readings: tuple[np.ndarray, np.ndarray]) -> None:
    ladder = Ladder.of(*readings)
    aurc, augrc = by_hand(*readings)
    assert ladder.aurc()[0] == pytest.approx(aurc, abs=0.003)
    assert ladder.augrc()[0] == pytest.approx(augrc, abs=0.003)


def test_auroc_counts_pairs_and_ties_half(readings: tuple[np.ndarray, np.ndarray]) -> None:
    score, wrong = readings
    worse, better = score[wrong == 1][:, None], score[wrong == 0]
    assert Ladder.of(score, wrong).auroc()[0] == pytest.approx(((worse > better) + 0.5 * (worse == better)).mean())


def test_weights_are_repetitions(readings: tuple[np.ndarray, np.ndarray]) -> None:
    score, wrong = readings
    drawn = np.random.default_rng(2).integers(0, 40, 40)
    weighted = Ladder.of(score, wrong, np.bincount(drawn, minlength=40))
    repeated = Ladder.of(score[drawn], wrong[drawn])
    for figure in FIGURES.values():
        assert figure(weighted)[0] == pytest.approx(figure(repeated)[0])


def test_a_perfect_score_and_its_opposite() -> None:
    wrong = np.array([0, 0, 0, 1, 1])
    good, bad = Ladder.of(wrong.astype(float), wrong), Ladder.of(1.0 - wrong, wrong)
    assert (good.auroc()[0], bad.auroc()[0]) == (1, 0)
    assert good.risk_at(0.6)[0] == 0
    assert good.coverage_at(0.05)[0] == 0.6
    assert bad.coverage_at(0.05)[0] == 0


def test_what_nothing_accepts_is_never_covered() -> None:
    ladder = Ladder.of([1.0, np.inf, np.inf], [0, 0, 0])
    assert ladder.coverage_at(0.5)[0] == pytest.approx(1 / 3)


def test_readings_that_do_not_tell_have_no_figure_and_no_nan() -> None:
    told = measure([1.0, 2.0, 3.0], [0, 0, 0])
    assert told["auroc"].value is None and told["auroc"].low is None
    assert told["aurc"].value == 0


@pytest.mark.parametrize(
    ("score", "wrong"), [([1.0, np.nan], [0, 1]), ([], []), ([1.0], [0, 1])], ids=["nan", "empty", "lengths"]
)
def test_what_is_no_score_is_refused(score: list[float], wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="score"):
        Ladder.of(score, wrong)


def test_resamples_are_the_same_for_the_same_seed() -> None:
    one, other = (np.concatenate(resampled(7, 3, 50)) for _ in range(2))
    assert (one == other).all() and (one.sum(axis=1) == 7).all()

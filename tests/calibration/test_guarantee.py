"""What is promised holds: bounds against the binomial distribution, thresholds in simulations, a peer beside them."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from vlmgate.calibration.choose import Promise, choose_score, design_part, promise
from vlmgate.calibration.guarantee import Step, certify, images_needed, lower_bound, upper_bound
from vlmgate.calibration.readings import Evidence, Labelled

DRAWS = 2000
CONFIDENCE = 0.95
TARGET = 0.08
ALLOWED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / DRAWS)  # three standard errors of the simulation


def test_no_error_among_299_certifies_one_per_cent() -> None:
    assert images_needed(0.01, 0.95) == 299
    assert images_needed(0.001, 0.95) == 2995
    assert upper_bound(0, 299, 0.95) <= 0.01 < upper_bound(0, 298, 0.95)


@pytest.mark.parametrize("errors", [0, 1, 3, 12])
@pytest.mark.parametrize("count", [13, 100, 2000])
def test_bounds_are_where_the_binomial_says(errors: int, count: int) -> None:
    high, low = upper_bound(errors, count, 0.95), lower_bound(errors, count, 0.95)
    assert binom.cdf(errors, count, high) == pytest.approx(0.05)
    assert low == 0 if errors == 0 else binom.sf(errors - 1, count, low) == pytest.approx(0.05)


def test_more_errors_take_more_images() -> None:
    needed = [images_needed(0.02, 0.9, errors) for errors in range(6)]
    assert needed == sorted(set(needed))
    for errors, count in enumerate(needed):
        assert upper_bound(errors, count, 0.9) <= 0.02 < upper_bound(errors, count - 1, 0.9)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_what_nothing_can_certify_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="target"):
        images_needed(target, 0.95)


def test_the_sequence_ends_at_the_first_that_fails() -> None:
    steps = [Step(1, 0, 400), Step(2, 1, 500), Step(3, 9, 520), Step(4, 9, 4000)]
    found = certify(steps, 0.01, 0.95)
    assert found.step == steps[1]
    assert found.bound == upper_bound(1, 500, 0.95)


# --- simulations ------------------------------------------------------------------------------------------------------


def labelled_like(count: int, bad: np.ndarray | None = None, salt: int = 0) -> Labelled:
    """Return N images of which nothing but their hashes and truths matters."""
    records = tuple(
        SimpleNamespace(sha256=hashlib.sha256(f"{salt}:{i}".encode()).hexdigest(), page=1) for i in range(count)
    )
    truths = tuple("none" if bad is None or not b else "crack" for b in (bad if bad is not None else [False] * count))
    return Labelled("class", records, truths, ("none", "crack"), "none", "", None, 8, 1, truths, (None,) * count)  # type: ignore[arg-type]


def evidence_of(scores: dict[str, np.ndarray], wrong: np.ndarray, answers: tuple[str, ...] | None = None) -> Evidence:
    count = len(wrong)
    return Evidence(8, "words", scores, wrong, answers or ("none",) * count, np.ones(count, bool), {})


def uniform(u: np.ndarray) -> np.ndarray:
    return u


def heavy(u: np.ndarray) -> np.ndarray:
    return np.tan(np.pi / 2 * u)  # |Cauchy|


def smooth(u: np.ndarray) -> np.ndarray:
    return 0.3 * u**2


def with_sure_mistakes(u: np.ndarray) -> np.ndarray:
    return 0.3 * u**2 + 0.15 * (u < 0.05)


def true_risk(u: float, chance: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the risk among all whose u lies below: the mean of the chance of being wrong."""
    grid = (np.arange(4000) + 0.5) / 4000 * u
    return float(chance(grid).mean())


def u_of(threshold: float, shape: Callable[[np.ndarray], np.ndarray]) -> float:
    return threshold if shape is uniform else 2 / math.pi * math.atan(threshold)


@pytest.mark.parametrize("shape", [uniform, pytest.param(heavy, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chance", [smooth, with_sure_mistakes])
def test_the_true_risk_exceeds_the_target_no_more_often_than_promised(
    shape: Callable[[np.ndarray], np.ndarray], chance: Callable[[np.ndarray], np.ndarray]
) -> None:
    rng = np.random.default_rng(11)
    labelled = labelled_like(400)
    design = design_part(labelled)
    broken = held = 0
    for _ in range(DRAWS):
        u = rng.random(400)
        one = evidence_of({"vendi_score": shape(u)}, rng.random(400) < chance(u))
        made = promise(labelled, one, "vendi_score", design, kind="risk", target=TARGET, confidence=CONFIDENCE)
        if made.holds:
            held += 1
            broken += true_risk(u_of(threshold_of(made), shape), chance) > TARGET
    assert broken <= ALLOWED * DRAWS
    assert held > 0.3 * DRAWS  # a promise that is never made is never broken


def threshold_of(made: Promise) -> float:
    (group,) = made.groups
    assert group.certified.step is not None
    return group.certified.step.threshold


def test_it_holds_when_the_score_is_chosen_too() -> None:
    rng = np.random.default_rng(12)
    labelled = labelled_like(300)
    design = design_part(labelled)
    draws, broken, picked = 500, 0, 0
    for _ in range(draws):
        u, noise = rng.random(300), rng.random(300)
        one = evidence_of({"vendi_score": u, "cocoa": noise}, rng.random(300) < smooth(u))
        score = choose_score([one], design).score
        picked += score == "vendi_score"
        made = promise(labelled, one, score, design, kind="risk", target=0.08, confidence=0.9)
        if made.holds:
            risk = true_risk(threshold_of(made), smooth) if score == "vendi_score" else true_risk(1.0, smooth)
            broken += risk > 0.08
    assert broken <= (0.1 + 3 * math.sqrt(0.09 / draws)) * draws
    assert picked > 0.9 * draws


def test_escapes_are_promised_among_the_defective() -> None:
    rng = np.random.default_rng(13)
    draws, broken, held = 1000, 0, 0
    count = 500
    images = labelled_like(count)
    design = design_part(images)
    for _ in range(draws):
        bad = rng.random(count) < 0.4
        labelled = labelled_with(images, bad)
        u = rng.random(count)
        passed = rng.random(count) < np.where(bad, 0.35 * u, 0.9)  # answers "none"
        answers = tuple(np.where(passed, "none", "crack"))
        one = evidence_of({"vendi_score": u}, passed == bad, answers)
        made = promise(labelled, one, "vendi_score", design, kind="escapes", target=0.1, confidence=CONFIDENCE)
        if made.holds:
            held += 1
            broken += 0.35 * threshold_of(made) ** 2 / 2 > 0.1
            assert made.count == int((bad & ~design).sum())
    assert broken <= (0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)) * draws
    assert held > 0.9 * draws


def labelled_with(labelled: Labelled, bad: np.ndarray) -> Labelled:
    truths = tuple(np.where(bad, "crack", "none"))
    return Labelled(
        "class", labelled.records, truths, labelled.choices, "none", "", None, 8, 1, truths, labelled.novelties
    )


def test_a_limit_for_each_answer_is_kept_where_it_gains_and_holds() -> None:
    rng = np.random.default_rng(14)
    labelled = labelled_like(900)
    design = design_part(labelled)
    draws, broken, used = 400, 0, 0
    for _ in range(draws):
        u = rng.random(900)
        good = rng.random(900) < 0.5
        chance = np.where(good, 0.5 * u, 0.02)  # the good answer is where the errors are
        answers = tuple(np.where(good, "none", "crack"))
        one = evidence_of({"vendi_score": u}, rng.random(900) < chance, answers)
        made = promise(labelled, one, "vendi_score", design, kind="risk", target=0.06, confidence=0.9, per_answer=True)
        used += made.per_answer
        if made.holds:
            limits = {g.answers: g.certified.step.threshold if g.certified.step else 0.0 for g in made.groups}
            a = limits.get(("none",), limits.get(None, 0.0))
            b = limits.get(("crack",), limits.get(None, 0.0))
            broken += (0.25 * a**2 + 0.02 * b) / max(a + b, 1e-9) > 0.06
    assert broken <= (0.1 + 3 * math.sqrt(0.09 / draws)) * draws
    assert used > 0.5 * draws


def test_what_the_labels_cannot_support_is_refused_with_a_number() -> None:
    rng = np.random.default_rng(15)
    labelled = labelled_like(200)
    one = evidence_of({"vendi_score": rng.random(200)}, np.zeros(200, bool))
    made = promise(labelled, one, "vendi_score", design_part(labelled), kind="risk", target=0.01, confidence=0.95)
    assert not made.holds and made.bound is None
    assert made.needed is not None and 299 <= made.needed <= 320  # new ones, which all certify


def test_where_the_surest_are_wrong_no_number_of_labels_is_named() -> None:
    labelled = labelled_like(200)
    one = evidence_of({"vendi_score": np.linspace(0, 1, 200)}, np.arange(200) % 2 == 0)
    made = promise(labelled, one, "vendi_score", design_part(labelled), kind="risk", target=0.05, confidence=0.95)
    assert not made.holds and made.needed is None


# --- a peer -----------------------------------------------------------------------------------------------------------


def test_mapie_agrees_and_is_no_wider() -> None:
    """MAPIE takes the same binomial tail, of one error more where its rounding of a rate times a count is unlucky."""
    control = pytest.importorskip("mapie.risk_control", reason="the extra test is not installed: no MAPIE")
    rng = np.random.default_rng(16)
    wider = 0
    for _ in range(20):
        trust = rng.random(600)  # high = safe
        right = rng.random(600) < 1 - 0.3 * (1 - trust) ** 2
        grid = np.linspace(0.6, 0.02, 30)  # from the safest on; among fewer nothing can be certified
        peer = control.BinaryClassificationController(
            lambda x: np.stack([1 - x[:, 0], x[:, 0]], axis=1),
            "precision",
            target_level=0.94,
            confidence_level=CONFIDENCE,
            list_predict_params=grid,
            fwer_method="fixed_sequence",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that precision need not fall with the threshold
            peer.calibrate(trust[:, None], right.astype(int))
        steps = [Step(-t, int((~right & (trust >= t)).sum()), int((trust >= t).sum())) for t in grid]
        ours = certify(steps, 0.06, CONFIDENCE)
        exact = np.array([binom.cdf(s.errors, s.count, 0.06) for s in steps])
        theirs = np.asarray(peer.p_values).ravel()
        bumped = np.array([binom.cdf(s.errors + 1, s.count, 0.06) for s in steps])
        assert (theirs >= exact - 1e-9).all() and (theirs <= bumped + 1e-9).all()
        reach = min(np.atleast_1d(peer.valid_predict_params), default=None)
        if reach is not None:
            assert ours.step is not None and -ours.step.threshold <= reach + 1e-9
        wider += ours.step is not None and (reach is None or -ours.step.threshold < reach - 1e-9)
    assert wider > 0

"""One part is one trial: which images show one part, and what follows for choosing, certifying and intervals."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vlmgate.calibration.choose import choose_score, design_part, promise
from vlmgate.calibration.cost import Outcomes, compare_policies
from vlmgate.calibration.figures import measure, resampled
from vlmgate.calibration.labels import read_labels
from vlmgate.calibration.parts import alike, joined, numbered, part_in, parts_of
from vlmgate.calibration.readings import Evidence, Labelled
from vlmgate.config import Costs
from vlmgate.config.calibrate import LabelledConfig
from vlmgate.errors import ConfigError, LabelError
from vlmgate.scores.novelty import pack

CONFIDENCE, TARGET = 0.95, 0.1


def features(rng: np.random.Generator, parts: int, frames: int, noise: float = 0.01) -> list[bytes | None]:
    """Return features of several frames of each part, with a little noise."""
    centres = rng.normal(size=(parts, 40))
    return [pack([*(centres[i] + noise * rng.normal(size=40))]) for i in range(parts) for _ in range(frames)]


# --- which images show one part ---------------------------------------------------------------------------------------


def test_near_copies_are_one_part_and_different_parts_are_not() -> None:
    found = alike(features(np.random.default_rng(0), 30, 4))
    assert found is not None and found.tolist() == [i // 4 for i in range(120)]


def test_copies_of_copies_are_one_part_too() -> None:
    """A slow drift from frame to frame: neighbours are alike, the ends are not."""
    rng = np.random.default_rng(1)
    begin, end = rng.normal(size=40), rng.normal(size=40)
    chain = [pack([*(begin + (end - begin) * i / 40)]) for i in range(41)]
    others = features(rng, 30, 1)
    found = alike([*chain, *others])
    assert found is not None and len(set(found[:41].tolist())) == 1 and len(set(found.tolist())) == 31


def test_images_without_features_are_like_no_other() -> None:
    packed = features(np.random.default_rng(2), 10, 2)
    packed[0] = packed[3] = None
    packed[5] = pack([1.0, 2.0])  # of another model
    found = alike(packed)
    assert found is not None and len(set(found.tolist())) == 13
    assert alike([None, None]) is None


def test_thousands_of_frames_of_one_part_are_one_part() -> None:
    """Against their own mean and deviation, frames that are nearly all there is would differ by noise alone."""
    rng = np.random.default_rng(10)
    found = alike([*features(rng, 1, 3000), *features(rng, 12, 2)])
    assert found is not None and np.bincount(found).tolist() == [3000, *[2] * 12]


def test_features_that_do_not_vary_make_no_copies_and_no_warning() -> None:
    same = [pack([1.0] * 8)] * 3
    assert alike(same) is not None
    rng = np.random.default_rng(3)
    packed = [pack([1.0] * 20 + [*rng.normal(size=20)]) for _ in range(20)]
    found = alike(packed)
    assert found is not None and len(set(found.tolist())) == 20


def test_links_join_in_steps() -> None:
    assert joined(6, [(4, 1), (1, 2), (5, 0)]).tolist() == [0, 1, 1, 2, 1, 0]
    assert numbered([{"a"}, {"b"}, {"a", "c"}, {"c"}, {"d"}]).tolist() == [0, 1, 0, 0, 2]


def test_what_is_said_of_parts() -> None:
    packed = features(np.random.default_rng(4), 30, 4)
    parts, notes = parts_of(packed, [])
    assert len(set(parts)) == 30 and notes[0].startswith("120 images look like 30 parts")
    parts, notes = parts_of(packed, [{str(i)} for i in range(120)])
    assert len(set(parts)) == 120 and "they look like 30 parts, fewer than the groups say" in notes[1]
    assert parts_of(packed[::4], []) == ((), [])
    parts, notes = parts_of([None] * 5, [])
    assert parts == () and "was not checked" in notes[0]


def test_a_pattern_takes_the_part_from_a_name() -> None:
    pattern = re.compile(r"(?P<part>[^/]+)_frame\d+")
    assert part_in("line/a_frame3.png", pattern) == "a"
    assert part_in("line/a.png", pattern) is None
    for wrong in ("(", "(.+)_", "(?P<par>.+)"):
        with pytest.raises(ConfigError, match="group-pattern"):
            LabelledConfig(group_pattern=wrong)


# --- as labels say it -------------------------------------------------------------------------------------------------


def table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_a_column_names_parts(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "s/c.png")
    table(tmp_path / "metadata.csv", "file_name,label,unit", "a.png,ok,1", "./b.png,ok,1", "s\\c.png,bad,2")
    found = read_labels(tmp_path, group="unit")
    assert {found.parts[key] for key in found.by_name if key[0] in ("a.png", "b.png")} == {"1"}
    assert found.parts["s/c.png", 1] == "2"


def test_folders_are_labels_and_a_table_names_parts(tmp_path: Path) -> None:
    images(tmp_path, "test/good/a.png", "test/crack/b.png")
    table(tmp_path / "metadata.csv", "file_name,unit", "test/good/a.png,1", "test/crack/b.png,2")
    found = read_labels(tmp_path, group="unit")
    assert found.by_name == {("good/a.png", 1): "good", ("crack/b.png", 1): "crack"}
    assert {key: found.parts[key] for key in found.by_name} == {("good/a.png", 1): "1", ("crack/b.png", 1): "2"}


def test_tables_of_splits_name_parts(tmp_path: Path) -> None:
    images(tmp_path, "train/a.png", "val/a.png")
    for split in ("train", "val"):
        table(tmp_path / split / "metadata.csv", "file_name,label,unit", f"a.png,{split},{split}1")
    found = read_labels(tmp_path, group="unit")
    assert found.parts == {("train/a.png", 1): "train1", ("val/a.png", 1): "val1"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["file_name,label", "a.png,ok"], "no table has the column 'unit'"),
        (["file_name,label,unit", "a.png,ok,1", "b.png,ok,"], "1 labelled images, first 'b.png'"),
        (["file_name,label,unit", "a.png,ok,1", "a.png,ok,2"], "of two groups, '1' and '2'"),
    ],
)
def test_every_labelled_image_has_one_part(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(LabelError, match=said):
        read_labels(table(tmp_path / "labels.csv", *rows), group="unit")


# --- what follows -----------------------------------------------------------------------------------------------------


def grouped(parts: int, frames: int, salt: int = 0) -> Labelled:
    """Return frames of parts of which nothing but their hashes matters."""
    count = parts * frames
    records = tuple(
        SimpleNamespace(sha256=hashlib.sha256(f"{salt}:{i}".encode()).hexdigest(), page=1) for i in range(count)
    )
    nothing = ("none",) * count
    numbers = tuple(i // frames for i in range(count))
    return Labelled(
        "class",
        records,
        nothing,
        ("none",),
        "none",
        "",
        None,
        8,
        1,
        nothing,
        (None,) * count,
        (),
        numbers,  # type: ignore[arg-type]
    )


def evidence_of(scores: np.ndarray, wrong: np.ndarray) -> Evidence:
    count = len(wrong)
    return Evidence(8, "words", {"vendi_score": scores}, wrong, ("none",) * count, np.ones(count, bool), {})


@pytest.mark.parametrize("frames", [1, 2, 10])
def test_no_part_both_chooses_and_certifies(frames: int) -> None:
    for salt in range(20):
        labelled = grouped(90, frames, salt)
        design, part, stands = design_part(labelled), labelled.part_of, labelled.stands
        assert not set(part[design]) & set(part[~design])
        assert np.bincount(part[stands]).tolist() == [1] * 90
        assert 10 <= (design & stands).sum() <= 50


def test_what_stands_for_a_part_is_drawn_evenly() -> None:
    """The share of parts that choose does not depend on how many images they have."""
    several = [design_part(grouped(200, 10, salt)).mean() for salt in range(30)]
    assert abs(np.mean(several) - 1 / 3) < 0.02


def test_a_part_is_an_error_where_any_accepted_image_is_wrong() -> None:
    labelled = grouped(60, 3)
    rest, part, stands = ~design_part(labelled), labelled.part_of, labelled.stands
    scores = np.zeros(180)
    wrong = np.zeros(180, bool)
    spoilt = [int(p) for p in np.unique(part[rest])[:2]]
    hidden = [int(np.flatnonzero((part == p) & ~stands)[0]) for p in spoilt]
    wrong[hidden[0]] = True  # accepted, and not the image that stands for its part
    wrong[hidden[1]], scores[hidden[1]] = True, np.inf  # never accepted
    kept = {"kind": "risk", "target": 0.3, "confidence": CONFIDENCE}
    made = promise(labelled, evidence_of(scores, wrong), "vendi_score", design_part(labelled), **kept)  # type: ignore[arg-type]
    assert made.holds and (made.errors, made.count) == (1, int((rest & stands).sum()))


def frames_of(rng: np.random.Generator, parts: int, frames: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and errors (parts, frames): frames of a part share most of what makes them hard."""
    common = rng.random((parts, 1))
    own = rng.random((parts, frames))
    hard = np.where(rng.random((parts, frames)) < shared, common, own)
    luck = np.where(rng.random((parts, frames)) < shared, rng.random((parts, 1)), rng.random((parts, frames)))
    return hard, luck < 0.35 * hard**2


@pytest.mark.parametrize("frames", [5, 10])
@pytest.mark.parametrize("shared", [1.0, 0.95])
def test_a_promise_of_parts_is_broken_no_more_often_than_it_says(frames: int, shared: float) -> None:
    """By images and by parts; counted image by image it is broken far more often."""
    rng = np.random.default_rng(5)
    count, draws = 120, 400
    labelled = grouped(count, frames)
    single = grouped(count * frames, 1)
    design = design_part(labelled)
    hard, failed = frames_of(np.random.default_rng(6), 200_000 // frames, frames, shared)
    broken = {"image": 0, "part": 0, "naive": 0}
    held = 0
    for _ in range(draws):
        scores, wrong = (a.ravel() for a in frames_of(rng, count, frames, shared))
        one = evidence_of(scores, wrong)
        made = promise(labelled, one, "vendi_score", design, kind="risk", target=TARGET, confidence=CONFIDENCE)
        if made.groups[0].certified.step is not None:
            inside = hard <= made.groups[0].certified.step.threshold
            held += 1
            broken["image"] += (inside & failed).sum() > TARGET * inside.sum()
            broken["part"] += (inside & failed).any(axis=1).sum() > TARGET * inside.any(axis=1).sum()
        naive = promise(
            single, one, "vendi_score", design_part(single), kind="risk", target=TARGET, confidence=CONFIDENCE
        )
        if naive.groups[0].certified.step is not None:
            inside = hard <= naive.groups[0].certified.step.threshold
            broken["naive"] += (inside & failed).sum() > TARGET * inside.sum()
    allowed = (0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)) * draws
    assert broken["image"] <= allowed and broken["part"] <= allowed
    if shared == 1.0:
        assert held > 0.2 * draws  # a promise that is never made is never broken
        assert broken["naive"] > allowed


def test_resampling_draws_whole_parts_and_widens_intervals() -> None:
    (weights,) = resampled(12, 0, 50, np.repeat([7, 3, 9], 4))
    assert weights.shape == (50, 12) and (weights[:, :4] == weights[:, :1]).all()
    assert (weights[:, [0, 4, 8]].sum(axis=1) == 3).all()
    rng = np.random.default_rng(7)
    scores, wrong = np.repeat(rng.random(60), 10), np.repeat(rng.random(60) < 0.3, 10)
    narrow, wide = (measure(scores, wrong, parts)["auroc"] for parts in (None, np.repeat(np.arange(60), 10)))
    assert narrow.value == wide.value and None not in (narrow.low, wide.low, narrow.high, wide.high)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_folds_and_bills_take_whole_parts() -> None:
    """Ten copies of each image change no estimate, where they count as one part."""
    rng = np.random.default_rng(8)
    scores, wrong, bad = rng.random(50), rng.random(50) < 0.3, rng.random(50) < 0.5
    parts = np.repeat(np.arange(50), 10)
    once = choose_score([evidence_of(scores, wrong)], np.ones(50, bool))
    tenfold = choose_score([evidence_of(scores.repeat(10), wrong.repeat(10))], np.ones(500, bool), parts=parts)
    assert tenfold.held_out["auroc"] == pytest.approx(once.held_out["auroc"])
    one = compare_policies(scores, Outcomes(bad, ~bad ^ wrong), Costs(), None)
    ten = compare_policies(
        scores.repeat(10), Outcomes(bad.repeat(10), (~bad ^ wrong).repeat(10)), Costs(), None, None, parts
    )
    assert [(p.name, round(p.cost, 6), round(p.low, 6)) for p in ten.policies] == [
        (p.name, round(p.cost, 6), round(p.low, 6)) for p in one.policies
    ]

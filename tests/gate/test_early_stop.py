"""A few samples first: what is certain is left alone, what is not is gone on with, and nothing is accepted for less."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.fakes import (
    AGREE,
    DISAGREE,
    FakeCaptioner,
    InRounds,
    SilentProgress,
    config_for,
    folder_of,
    let_it_read,
)
from vlmgate.calibration.labels import Labels
from vlmgate.calibration.readings import join
from vlmgate.cli import app
from vlmgate.config import SamplingConfig, ScanConfig, WatchConfig
from vlmgate.data import Caption, Quality, Reason, Route, Sampled
from vlmgate.errors import ConfigError, GateError, LabelError, UsageError
from vlmgate.gate.early_stop import (
    Foresight,
    check_gate,
    entropy_between,
    joined,
    looks,
)
from vlmgate.gate.rules import Gate, Limit, make_gate
from vlmgate.run.loop import scan
from vlmgate.run.rescore import rescore
from vlmgate.scores.diversity import WordKernel, claim_kernel, vendi_score
from vlmgate.scores.findings import load_vocabulary
from vlmgate.scores.score import Scorer
from vlmgate.store.result import read_result

K = 16
VOCABULARY = load_vocabulary()
SAMPLING = SamplingConfig(num_samples=K)
HALF = (*DISAGREE[:2], *AGREE, *AGREE)
SURE = Caption(AGREE[0], "stop", -0.001, 9)  # that says next to nothing else


def adaptive(folder: Path, out: Path, first: int = 4, **changes: Any) -> ScanConfig:
    config = config_for(folder, out, num_samples=K, **changes)
    return replace(config, sampling=replace(config.sampling, first_samples=first))


def said(*texts: str, answers: Sequence[str] | None = None, probability: float = 0.05) -> Sampled:
    told = None if answers is None else tuple(Caption(a, "stop", -0.1, 2) for a in answers)
    return Sampled(tuple(Caption(text, "stop", math.log(probability) / 5, 5) for text in texts), told)


def certain(
    gate: Gate,
    one: Sampled,
    quality: Quality | None = None,
    novelty: float | None = None,
    sampling: SamplingConfig = SAMPLING,
) -> bool:
    return Foresight(gate, Scorer("", ("ok", "dent")), sampling).is_certain(one, quality, novelty)


# --- the bounds -------------------------------------------------------------------------------------------------------


def test_whatever_follows_the_entropy_stays_between_its_bounds() -> None:
    rng = np.random.default_rng(0)
    for trial in range(200):
        vectors = np.abs(rng.normal(size=(K, int(rng.integers(1, 12)))))
        vectors[trial % K :] = vectors[0] if trial % 3 == 0 else vectors[trial % K :]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        kernel = vectors @ vectors.T
        for k in (2, 4, 8, 15):
            low, high = entropy_between(kernel[:k, :k], K)
            assert low - 1e-9 <= math.log(vendi_score(kernel)) <= high + 1e-9
    assert entropy_between(np.eye(4), K)[1] == pytest.approx(math.log(K))


def test_of_groups_the_least_is_that_of_one_that_grows() -> None:
    """Of 16 captions one that differs comes to more than 1.25, so it is enough to see it once."""
    kernel = claim_kernel([VOCABULARY.claims(text) for text in (*AGREE * 3, *DISAGREE[:1])])
    low, _ = entropy_between(kernel, K)
    assert math.exp(low) == pytest.approx(1.2634, abs=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(200):
        groups = rng.integers(0, 3, size=K)
        whole = (groups[:, None] == groups[None, :]).astype(float)
        low, high = entropy_between(whole[:5, :5], K)
        assert low - 1e-9 <= math.log(vendi_score(whole)) <= high + 1e-9


@pytest.mark.parametrize(
    ("first", "most", "expected"),
    [
        (4, 16, (4, 6, 8, 10, 12, 14, 16)),
        (4, 8, (4, 5, 6, 7, 8)),
        (2, 3, (2, 3)),
        (15, 16, (15, 16)),
        (8, 64, (*range(8, 57, 8), 64)),
    ],
)
def test_it_is_looked_at_first_then_in_even_steps_then_at_all(first: int, most: int, expected: tuple[int, ...]) -> None:
    assert looks(first, most) == expected


# --- one image --------------------------------------------------------------------------------------------------------


def test_what_no_sample_changes_is_certain_at_once() -> None:
    gate = make_gate(num_samples=K, threshold=4.0, limits=("novelty <= 1", "sharpness >= 10"))
    sharp = Quality(50.0, 0.5, 0.2, 1.0, 0.0, 0.0)
    open_ = said(*DISAGREE[:4])
    assert not certain(gate, open_, sharp, 0.5)
    assert certain(gate, open_, sharp, 1.5) and certain(gate, open_, sharp, None)
    assert certain(gate, open_, replace(sharp, sharpness=5.0), 0.5)
    assert certain(gate, said(*AGREE * 3, ""), sharp, 0.5)  # an empty caption bars the image
    assert not certain(gate, said(*AGREE * 4), sharp, 0.5)


def test_nothing_is_accepted_early_that_a_later_caption_may_turn() -> None:
    strict, two = (make_gate(num_samples=K, threshold=t) for t in (1.25, 2.0))
    for gate in (strict, two):
        assert not certain(gate, said(*AGREE * 15)), "the last may contradict"
        assert certain(gate, said(*AGREE * 16))
    allowed = [make_gate(num_samples=K, threshold=t, limits=["contradiction <= 0.5"]) for t in (1.25, 2.0)]
    assert [certain(gate, said(*AGREE * 15)) for gate in allowed] == [False, True], "one of 16 comes to 1.26"
    assert [certain(gate, said(*AGREE * 12)) for gate in allowed] == [False, False]
    crack, dent = "a crack", "a dent"
    assert not certain(two, said(*[crack] * 7, dent))  # others may still come
    assert certain(two, said(*[crack] * 15, dent))
    assert certain(strict, said(*[crack] * 3, dent)), "one that differs is too many already"


def test_a_contradiction_is_certain_at_once_unless_it_is_allowed() -> None:
    disputed = said("A scratch is visible.", "No scratch is visible.")
    assert certain(make_gate(num_samples=K, threshold=8.0), disputed)
    assert not certain(make_gate(num_samples=K, threshold=8.0, limits=["contradiction <= 0.25"]), disputed)


def test_a_caption_that_disputes_the_answer_is_certain_once_the_answer_is() -> None:
    gate = make_gate(num_samples=K, score="vendi_score", threshold=16.0, limits=["answer_share >= 0.1"], answered=True)
    dents = ["a dent"] * 10
    assert certain(gate, said(*dents, answers=["ok"] * 10)), "the six that follow cannot turn the answer"
    assert not certain(gate, said(*dents[:6], answers=["ok"] * 4 + ["dent"] * 2)), "it may still be a dent"


def test_what_is_far_from_the_limit_is_certain() -> None:
    mixed, wild = said(*HALF), said(*DISAGREE[:4])
    wide = make_gate(num_samples=K, threshold=8, limits=["contradiction <= 0.5"])
    assert [certain(make_gate(num_samples=K, threshold=1.25), one) for one in (mixed, wild)] == [True, True]
    assert [certain(wide, one) for one in (mixed, wild)] == [False, False]


def test_agreement_and_doubt_are_foreseen_by_the_vendi_score() -> None:
    allowed: Any = {"num_samples": K, "limits": ["contradiction <= 0.5"]}
    assert certain(make_gate(score="agreement", threshold=0.3, **allowed), said(*AGREE * 8))
    dents = said(*DISAGREE[:2], *["a dent"] * 8)
    assert not certain(make_gate(num_samples=K, score="agreement", threshold=0.7), dents)
    doubt = make_gate(score="doubt", threshold=6.0, **allowed)
    assert certain(doubt, said(*AGREE * 8), None, 0.5)
    assert certain(doubt, said(*AGREE * 4), None, 1.5)  # 1 + K is beyond it, though 1 + 4 is not
    assert not certain(doubt, said(*AGREE * 4), None, None)


def test_answers_are_certain_once_they_cannot_turn() -> None:
    wide: Any = {"score": "vendi_score", "threshold": 16.0, "limits": ["contradiction <= 0.5", "answer_share >= 0.75"]}
    gate = make_gate(num_samples=K, answered=True, **wide)
    assert not certain(gate, said(*AGREE * 4, answers=["ok"] * 4)), "four that all say the same are four of sixteen"
    mixed = (*["a round washer without dents"] * 11, "it is black")
    assert certain(gate, said(*mixed, answers=["ok"] * 12))
    assert not certain(gate, said(*mixed, answers=["ok"] * 9 + ["dent"] * 3))
    assert certain(gate, said(*mixed, answers=["ok"] * 6 + ["dent"] * 6))
    assert not certain(gate, said(*AGREE * 4, answers=["ok"] * 2 + ["dent"] * 2))
    assert certain(gate, said(*AGREE * 4, answers=["ok"] * 3 + [""]))


def test_the_probability_of_an_answer_is_certain_once_nothing_unseen_can_change_it() -> None:
    gate = make_gate(
        num_samples=K,
        score="vendi_score",
        threshold=16.0,
        limits=("answer_probability >= 0.75", "contradiction <= 0.5"),
    )

    def of(first: int, *answers: tuple[str, float]) -> Sampled:
        drawn = [Caption(text, "stop", math.log(p), 1) for text, p in answers]
        return Sampled(said(*DISAGREE * 4).captions[:first], tuple(drawn[i % len(drawn)] for i in range(first)))

    assert not certain(gate, of(4, ("ok", 0.8), ("ok", 0.8), ("dent", 0.1))), "the other may still be named more often"
    assert certain(gate, of(12, ("ok", 0.8)))
    assert certain(gate, of(4, ("ok", 0.6), ("dent", 0.3))), "the rest is a tenth, so that no choice reaches the limit"
    assert not certain(gate, of(4, ("ok", 0.6), ("ok", 0.6), ("dent", 0.2))), "a fifth that is unseen may be 'OK.'"
    assert not certain(gate, of(4, ("ok", 0.1), ("dent", 0.1)))


def test_a_limit_of_one_answer_waits_until_that_is_the_answer() -> None:
    gate = Gate(threshold=16.0, limits=(Limit("vendi_score", "<=", 1.01, answer="dent"),))
    assert not certain(gate, said(*DISAGREE[:4], answers=["dent"] * 3 + ["ok"]))
    assert certain(gate, said(*DISAGREE * 2, *DISAGREE[:2], answers=["dent"] * 12))


def test_all_samples_are_always_enough() -> None:
    reading: Any = type("R", (), {"captions": said(*DISAGREE * 4).captions[:K]})
    assert Foresight(make_gate(num_samples=K, threshold=2.0), Scorer(""), SAMPLING).settled(reading, None)


@pytest.mark.parametrize(
    ("gate", "kernel", "words"),
    [
        (Gate(budget_count=3), "words", "--review-budget"),
        (Gate(threshold=2.0), "minilm", "--kernel minilm"),
        (make_gate(num_samples=K, score="cocoa", threshold=1.0), "words", "cannot foresee cocoa"),
        (make_gate(num_samples=K, threshold=2.0, limits=("answer_entropy <= 1",)), "words", "answer_entropy"),
    ],
)
def test_what_cannot_be_foreseen_is_refused_in_one_line(gate: Gate, kernel: str, words: str) -> None:
    with pytest.raises(GateError, match=words):
        check_gate(gate, kernel)


@pytest.mark.parametrize("first", [1, 16, 17])
def test_a_range_that_is_none_is_refused(first: int) -> None:
    with pytest.raises(ConfigError, match="samples"):
        SamplingConfig(num_samples=16, first_samples=first)
    with pytest.raises(ConfigError, match="views"):
        SamplingConfig(num_samples=16, first_samples=4, views=2)


# --- a folder ---------------------------------------------------------------------------------------------------------


def say(name: str) -> Sequence[str | Caption]:
    wild = tuple(text for text in DISAGREE if VOCABULARY.claims(text).certain)
    return {"s": (SURE,), "m": HALF, "w": wild}[name[0]]


def test_a_folder_is_split_as_with_all_samples(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{kind}{i}.png" for kind in "smw" for i in range(3)))
    fake = InRounds(say)
    few = scan(adaptive(folder, tmp_path / "a.parquet", threshold=2.0), SilentProgress(), load=fake.load)
    all_ = scan(
        config_for(folder, tmp_path / "b.parquet", num_samples=K, threshold=2.0), SilentProgress(), load=fake.load
    )
    assert [r.route for r in few.records] == [r.route for r in all_.records]
    drawn = {r.file_name[0]: r.num_samples for r in read_result(tmp_path / "a.parquet")[0]}
    assert drawn["s"] == K and drawn["w"] < 8 and {r.num_samples for r in all_.records} == {K}
    assert [len(batch) for batch in fake.history[:1]] == [9], (
        "four times as many images at once, of a quarter of the samples"
    )
    told = few.provenance["adaptive"]
    assert told["images"] == 9 and told["stopped_early"] == 6 and told["tokens"] < told["tokens_of_all"]
    assert all_.provenance["adaptive"] is None
    again = InRounds(say)
    scan(adaptive(folder, tmp_path / "a.parquet", threshold=2.0), SilentProgress(), load=again.load)
    assert not again.history, "what is settled was read again"


def test_another_limit_draws_what_is_missing_and_no_more(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "s.png", "w.png")
    (folder / "z.png").write_bytes((folder / "w.png").read_bytes())
    scan(adaptive(folder, tmp_path / "r.parquet", threshold=2.0), SilentProgress(), load=InRounds(say).load)
    fake, progress = InRounds(say), SilentProgress()
    result = scan(adaptive(folder, tmp_path / "r.parquet", threshold=5.0), progress, load=fake.load)
    assert fake.read_names == ["w.png"] and any("1 images need more samples" in m for m in progress.messages)
    drawn = [r.num_samples for r in result.records]
    assert drawn[0] == K and 4 < drawn[1] == drawn[2]
    fake = InRounds(say)
    scan(adaptive(folder, tmp_path / "r.parquet", threshold=5.0), SilentProgress(), load=fake.load)
    assert not fake.history


def test_a_stop_before_the_first_image_accepts_nothing_on_samples_for_another_limit(tmp_path: Path) -> None:
    """Four different captions go to a person at 2; under 5, which four captions never pass, they are not enough."""
    folder = folder_of(tmp_path / "in", "s.png", "w.png")
    options: dict[str, Any] = {"reference": folder_of(tmp_path / "ref", *(f"s{i}.png" for i in range(10)))}

    def features(name: str) -> tuple[float, ...]:
        return (1.0, 0.1 * len(name), float(ord(name[1])) / 50)

    fake = InRounds(say, features=features)
    scan(adaptive(folder, tmp_path / "r.parquet", threshold=2.0, **options), SilentProgress(), load=fake.load)

    def stopped(_: str) -> Sequence[str]:
        raise KeyboardInterrupt

    (tmp_path / "r.reference.npz").unlink()
    stop = InRounds(stopped, features=features)
    result = scan(adaptive(folder, tmp_path / "r.parquet", threshold=5.0, **options), SilentProgress(), load=stop.load)
    assert result.interrupted and {r.file_name: r.reason for r in result.records}["w.png"] is Reason.NOT_READ


def test_what_was_read_before_is_looked_at_once_however_long_a_folder_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "in", *(f"w{i}.png" for i in range(40)))
    looked: list[int] = []
    usual = Foresight.open_among
    monkeypatch.setattr(Foresight, "open_among", lambda *given: (looked.append(len(given[1])), usual(*given))[1])
    watch = WatchConfig(settle=0.1, publish_every=0.0, idle=0.3)
    config = adaptive(folder, tmp_path / "r.parquet", threshold=2.0, watch=watch)
    config = replace(config, sampling=replace(config.sampling, batch_size=1))  # 16 files a round
    result = scan(config, SilentProgress(), load=InRounds(say).load)
    assert looked == [0] and max(r.num_samples or K for r in result.records) < K and len(result.records) == 40


def test_an_engine_that_draws_all_at_once_is_as_good(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "s.png", "w.png")
    result = scan(adaptive(folder, tmp_path / "r.parquet"), SilentProgress(), load=FakeCaptioner(say).load)
    assert {r.num_samples for r in result.records} == {K} and result.error is None


def test_an_image_that_is_novel_takes_the_first_samples_only_and_stays_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "s.png", "w.png")
    good = folder_of(tmp_path / "good", *(f"s{i}.png" for i in range(30)))
    fake = InRounds(say, features=lambda name: (90.0, 9.0) if name == "w.png" else (len(name) / 9, ord(name[1]) / 9))
    config = adaptive(folder, tmp_path / "r.parquet", threshold=8.0, limits=("novelty <= 1",), reference=good)
    rows = {r.file_name: r for r in scan(config, SilentProgress(), load=fake.load).records}
    assert (rows["w.png"].num_samples, rows["w.png"].route, rows["w.png"].reason) == (
        4,
        Route.HUMAN_REVIEW,
        Reason.BEYOND_LIMIT,
    )
    again = InRounds(say)
    scan(config, SilentProgress(), load=again.load)
    assert not again.history


def test_doubt_counts_with_all_samples_however_few_were_drawn(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "s.png")
    good = folder_of(tmp_path / "good", *(f"s{i}.png" for i in range(30)))
    fake = InRounds(say, features=lambda name: (90.0, 9.0) if name == "s.png" else (len(name) / 9, ord(name[1]) / 9))
    config = adaptive(folder, tmp_path / "r.parquet", score="doubt", threshold=6.0, reference=good)
    (row,) = scan(config, SilentProgress(), load=fake.load).records
    assert (row.num_samples, row.doubt, row.route) == (4, 17.0, Route.HUMAN_REVIEW)


def test_what_needs_all_samples_says_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "s.png", "w.png")
    scan(adaptive(folder, tmp_path / "r.parquet", threshold=2.0), SilentProgress(), load=InRounds(say).load)
    records, provenance = read_result(tmp_path / "r.parquet")
    with pytest.raises(UsageError, match="draws what is missing"):
        rescore(records, provenance, Gate(threshold=3.0), WordKernel(), kernel_name="words", source=Path("r.parquet"))
    with pytest.raises(LabelError, match="same number"):
        join(records, provenance, Labels("verdict", "verdicts", Path("v.csv"), None))


def test_the_command_line_takes_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "in", "s.png", "w.png")
    let_it_read(InRounds(say), monkeypatch)
    command = ["scan", str(folder), "-o", str(tmp_path / "r.parquet"), "--samples", "4..16", "--threshold", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "4 to 16 samples" in done.output and "images stopped early" in done.output
    done = CliRunner().invoke(app, [*command, "--format", "json"])
    assert json.loads(done.stdout)["adaptive"]["most"] == 16
    for more, words in (
        (["--samples", "4-16"], "such as 4..16"),
        (["--samples", "4..16", "-k", "12"], "do not agree"),
        (["--samples", "16..4"], "FEWEST..MOST"),
        (["--samples", "4..16", "--review-budget", "10%"], "exclude each other"),
    ):
        done = CliRunner().invoke(app, ["scan", str(folder), "-o", str(tmp_path / "x.parquet"), *more])
        assert done.exit_code == 2 and words in done.output, done.output


def test_savings_of_shards_add_up() -> None:
    one = {"first": 4, "most": 8, "images": 3, "stopped_early": 2, "mean_samples": 5.0}
    one |= {"tokens": 90, "tokens_of_all": 144}
    other = one | {"images": 1, "stopped_early": 0, "mean_samples": 8.0, "tokens": 40, "tokens_of_all": 40}
    told = joined([one, other])
    assert told is not None and told["mean_samples"] == 5.75 and told["stopped_early"] == 2
    assert (told["images"], told["tokens"], told["tokens_of_all"]) == (4, 130, 184)
    assert joined([]) is None

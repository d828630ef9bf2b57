"""Answers that were scored and not drawn: from the engine to the row, and back from every file that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import vlmgate
from tests.support.fakes import (
    AGREE,
    DISAGREE,
    InRounds,
    SilentProgress,
    config_for,
    folder_of,
    let_it_read,
)
from vlmgate.calibration.run import answering
from vlmgate.cli import app
from vlmgate.config import EndpointConfig, ModelConfig, ScanConfig, Shard
from vlmgate.data import Caption, Reason, Record, Route, Sampled
from vlmgate.errors import GateError, ResumeError, UsageError
from vlmgate.gate.early_stop import Foresight
from vlmgate.gate.file import read_gate
from vlmgate.gate.rules import Gate, make_gate
from vlmgate.report.image import print_record
from vlmgate.report.summary import print_summary
from vlmgate.review.items import choose, facts_of
from vlmgate.run.loop import scan
from vlmgate.run.merge import merge
from vlmgate.run.rescore import check_columns, rescore
from vlmgate.scores.diversity import WordKernel
from vlmgate.scores.score import Scorer
from vlmgate.store.result import TRIES_FILE, read_result

CHOICES = ("ok", "scratch")
Chances = Mapping[str, float]
SURE: Chances = {"ok": 0.9, "Ok.": 0.06, "scratch": 0.02, "unsure": 0.01}


def scored(chances: Chances) -> tuple[Caption, ...]:
    return tuple(Caption(text, "scored", round(math.log(p) / 2, 9), 2) for text, p in chances.items())


class Scores(InRounds):
    """A fake that scores the answers of an image where it is asked to and `chances` has them; else it draws them."""

    chances: Callable[[str], Chances | None]

    def __init__(self, chances: Callable[[str], Chances | None] = lambda _: SURE, **more: Any) -> None:
        super().__init__(**more)
        self.chances = chances

    def _sampled(self, name: str) -> Sampled:
        drawn = super()._sampled(name)
        chances = self.chances(name)
        if self.sampling.answers != "exact" or chances is None or drawn.answers is None:
            return drawn
        return replace(drawn, answers=scored(chances))


def asking(folder: Path, out: Path, answers: str = "exact", **changes: Any) -> ScanConfig:
    config = config_for(folder, out, **changes)
    asked = replace(config.sampling, question="Is it ok?", choices=CHOICES, answers=answers)  # type: ignore[arg-type]
    return replace(config, sampling=asked)


def row_of(tmp_path: Path, chances: Chances | None, **changes: Any) -> Record:
    folder = folder_of(tmp_path / "in", "a.png")
    fake = Scores(lambda _: chances, answer=lambda _: ("ok",))
    (row,) = scan(asking(folder, tmp_path / "r.parquet", **changes), SilentProgress(), load=fake.load).records
    return row


# --- what becomes of them ---------------------------------------------------------------------------------------------


def test_all_figures_come_from_the_probabilities_and_the_share_is_null(tmp_path: Path) -> None:
    row = row_of(tmp_path, SURE)
    assert (row.answer, row.answer_share, row.answer_probability) == ("ok", None, 0.96)
    assert (row.abstain_rate, row.unparsable_rate) == (0.01, 0.01)
    parts = (0.96, 0.02, 0.01, 0.01)
    assert row.answer_entropy == pytest.approx(-sum(p * math.log(p) for p in parts), abs=1e-5)
    assert (row.route, row.reason) == (Route.AUTO_ACCEPT, Reason.AGREED)
    (held,), provenance = read_result(tmp_path / "r.parquet")
    assert held.answers == tuple(SURE) and held.answer_finishes == ("scored",) * 4 and held.answer_tokens == (2,) * 4
    assert provenance["sampling"]["answers"] == "exact"
    gate = provenance["gate"]
    assert (gate["score"], gate["threshold"], gate["default"]) == ("answer_probability", 0.75, True)


@pytest.mark.parametrize(
    ("chances", "answer"),
    [
        ({"ok": 0.49, "scratch": 0.48}, None),  # what is left over may name either
        ({"ok": 0.5, "scratch": 0.46, "unsure": 0.04}, "ok"),
        ({"ok": 0.2, "unsure": 0.79}, "ok"),  # as of drawn answers; its probability keeps it from being accepted
        ({"unsure": 0.99}, None),
        ({"ok": 0.01, "unsure": 0.97}, None),
        ({"ok": 0.5, "scratch": 0.5}, None),
        ({"perhaps ok": 1.0}, None),
    ],
)
def test_an_answer_is_more_probable_than_any_other_could_be(
    tmp_path: Path, chances: Chances, answer: str | None
) -> None:
    row = row_of(tmp_path, chances)
    assert (row.answer, row.route) == (answer, Route.HUMAN_REVIEW)
    assert row.reason == (Reason.NO_ANSWER if answer is None else Reason.DISAGREED)
    assert (row.answer_probability is None) == (answer is None)
    assert row.decided_by == (None if answer is None else "answer_probability")


def test_an_image_that_had_to_be_drawn_has_its_share_and_the_same_limit(tmp_path: Path) -> None:
    row = row_of(tmp_path, None)
    assert (row.answer, row.answer_share) == ("ok", 1.0) and row.answer_finishes == ("stop",) * 4
    assert (row.answer_probability, row.route) == (1.0, Route.AUTO_ACCEPT)


def test_any_mixture_of_forms_makes_figures_in_their_ranges() -> None:
    for weights in ((1.0,), (0.3, 0.7), (0.999999, 0.000001), (0.25, 0.25, 0.25, 0.25)):
        texts = ("ok", "scratch", "unsure", "OK.")
        answers = scored(dict(zip(texts, weights, strict=False)))
        scores, _ = Scorer("", CHOICES).score(Sampled((Caption("a ring", "stop", -0.1, 3),) * 2, answers))
        for name in ("abstain_rate", "unparsable_rate"):
            assert 0 <= getattr(scores, name) <= 1
        assert scores.answer_entropy is not None and 0 <= scores.answer_entropy <= math.log(4) + 1e-6
        assert scores.answer_share is None


# --- when they are exact ----------------------------------------------------------------------------------------------


def test_a_limit_on_the_share_has_them_drawn_and_a_demand_for_both_is_refused(tmp_path: Path) -> None:
    row = row_of(tmp_path, SURE, answers="auto", limits=("answer_share >= 0.9",))
    assert row.answer_share == 1.0 and row.answer_finishes == ("stop",) * 4
    for changes in ({"limits": ("answer_share >= 0.9",)}, {"score": "answer_share", "threshold": 0.9}):
        with pytest.raises(UsageError, match="answer_share is of drawn answers"):
            row_of(tmp_path / "other", SURE, **changes)


def test_a_model_server_draws_and_cannot_be_asked_to_score(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    server = ModelConfig("vlm", endpoint=EndpointConfig("http://localhost:1/v1"))
    fake = Scores(answer=lambda _: ("ok",))
    with pytest.raises(UsageError, match="a model that runs here"):
        scan(asking(folder, tmp_path / "r.parquet", model=server), SilentProgress(), load=fake.load)
    done = scan(asking(folder, tmp_path / "s.parquet", "auto", model=server), SilentProgress(), load=fake.load)
    assert done.records[0].answer_share == 1.0


def test_the_same_command_goes_on_as_its_journal_began(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    scan(asking(folder, tmp_path / "r.parquet"), SilentProgress(), load=Scores().load)
    assert json.loads((tmp_path / "r.journal.jsonl").read_bytes().splitlines()[0])["fingerprint"]["answers"] == "exact"
    folder_of(tmp_path / "in", "b.png")
    for _ in range(2):
        again = Scores(lambda name: SURE if name == "b.png" else {"scratch": 1.0})
        done = scan(asking(folder, tmp_path / "r.parquet"), SilentProgress(), load=again.load)
        assert [row.answer_probability for row in done.records] == [0.96, 0.96]
    assert again.history == [], "what was scored was read again"
    with pytest.raises(ResumeError, match="answers"):
        scan(asking(folder, tmp_path / "r.parquet", "drawn"), SilentProgress(), load=Scores().load)


def test_what_is_left_open_follows_the_journal(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    open_ = {"score": "answer_probability", "threshold": 0.5}
    scan(asking(folder, tmp_path / "r.parquet", **open_), SilentProgress(), load=Scores().load)
    fake = Scores()
    gate = make_gate(num_samples=4, answered=False, **open_)  # type: ignore[arg-type]
    assert not gate.compares("answer_share")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vlmgate.gate.run_gate.make_gate", lambda **_: gate)
        done = scan(asking(folder, tmp_path / "r.parquet", "auto", **open_), SilentProgress(), load=fake.load)
        assert not fake.history and done.records[0].answer_share is None
        scan(asking(folder, tmp_path / "d.parquet", "drawn", **open_), SilentProgress(), load=fake.load)
        fake = Scores()
        done = scan(asking(folder, tmp_path / "d.parquet", "auto", **open_), SilentProgress(), load=fake.load)
        assert not fake.history and done.records[0].answer_finishes == ("stop",) * 4
        done = scan(asking(folder, tmp_path / "n.parquet", "auto", **open_), SilentProgress(), load=Scores().load)
        assert done.records[0].answer_finishes == ("scored",) * 4, "nothing speaks against it"


# --- fewer samples, other gates, other places -------------------------------------------------------------------------


def test_answers_that_are_certain_need_no_more_samples(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "low.png", "sure.png")
    sure = Caption(AGREE[0], "stop", -0.001, 9)
    fake = Scores(lambda name: SURE if name == "sure.png" else {"ok": 0.6, "scratch": 0.4}, say=lambda _: (sure,))
    config = asking(folder, tmp_path / "r.parquet", num_samples=16, score="vendi_score", threshold=2.0)
    config = replace(config, sampling=replace(config.sampling, first_samples=4))
    done = scan(config, SilentProgress(), load=fake.load)
    assert [row.num_samples for row in done.records] == [4, 16], "a later caption may still contradict the sure one"
    assert [row.route for row in done.records] == [Route.HUMAN_REVIEW, Route.AUTO_ACCEPT]
    assert done.provenance["adaptive"]["tokens"] == (4 + 16) * 9, "answers that nobody drew took no tokens"
    again = Scores()
    scan(config, SilentProgress(), load=again.load)
    assert again.history == []
    foresight = Foresight(Gate(threshold=16.0), Scorer("", CHOICES), config.sampling)
    captions = tuple(Caption(text, "stop", -2.0, 5) for text in DISAGREE[:4])
    for chances, certain in (({"unsure": 0.99}, True), (SURE, True)):
        assert foresight.is_certain(Sampled(captions, scored(chances)), None, None) is certain


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = folder_of(tmp_path / "in", "a.png", "b.png", "c.png")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    chances: dict[str, Chances | None] = {"a.png": SURE, "copy.png": SURE, "b.png": {"scratch": 0.55, "unsure": 0.45}}
    fake = Scores(lambda name: chances.get(name), answer=lambda _: ("ok", "ok", "ok", "scratch"))
    scan(asking(folder, tmp_path / "r.parquet"), SilentProgress(), load=fake.load)
    return tmp_path / "r.parquet"


def test_a_result_is_scored_anew_and_shares_are_not_made_up(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, provenance = read_result(result)
    limits = ["answer_probability >= 0.75"]
    gate = make_gate(num_samples=4, limits=limits, threshold=1.25)
    done = rescore(records, provenance, gate, WordKernel(), kernel_name="words", source=result)
    same = [(r.answer, r.answer_probability, r.abstain_rate, r.route) for r in records]
    assert [(r.answer, r.answer_probability, r.abstain_rate, r.route) for r in done.records] == same
    check_columns(records, make_gate(num_samples=4, limits=["answer_share >= 0.5"]))  # one image was drawn
    only_scored = [record for record in records if record.answer_share is None]
    with pytest.raises(UsageError, match="answer_share: this result holds nothing of it"):
        check_columns(only_scored, make_gate(num_samples=4, limits=["answer_share >= 0.5"]))
    monkeypatch.chdir(result.parent)
    out = CliRunner().invoke(
        app, ["rescore", "r.parquet", "--score", "vendi_score", "--threshold", "1.25", "--format", "json"]
    )
    assert out.exit_code == 0, out.stderr
    told = json.loads(out.stdout)["gate"]["limits"]
    assert [limit["column"] for limit in told] == ["answer_probability"]


def test_what_is_shown_are_probabilities(result: Path) -> None:
    records, provenance = read_result(result)
    by_name = {record.file_name: record for record in records}
    console = Console(file=StringIO(), width=120)
    print_record(by_name["b.png"], provenance, console)
    print_summary(records, provenance, result, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 image whose answers were drawn" in text
    assert "probability  answer" in text and "0.5500  scratch" in text and "0.4500  unsure" in text
    gate = make_gate(num_samples=4, threshold=1.25, limits=["contradiction <= 0.5", "abstain_rate <= 0.25"])
    done = rescore(records, provenance, gate, WordKernel(), kernel_name="words", source=result)
    facts = {
        item.record.file_name: facts_of(item, gate, done.provenance) for item in choose(done.records, gate, accepted=9)
    }
    assert facts["b.png"]["answers"] == [{"share": 0.55, "text": ["scratch"]}, {"share": 0.45, "text": ["unsure"]}]
    assert facts["b.png"]["why"].startswith("The model is unsure with a probability of 45%; up to 25% is accepted")
    assert facts["c.png"]["answers"][0]["times"] == 3, "drawn ones are counted"


def test_a_gate_holds_for_exact_answers_or_for_drawn_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{kind}/{kind}_{i:03d}.png" for kind in CHOICES for i in range(40)]
    folder_of(tmp_path / "labelled", *names)

    def chances(name: str) -> Chances:
        right = Path(name).stem.split("_")[0]
        return (
            {right: 0.97, "unsure": 0.02}
            if not name.endswith("5.png")
            else {"ok": 0.5, "scratch": 0.45, "unsure": 0.04}
        )

    fake = Scores(chances, say=lambda _: ("a grey part",), answer=lambda n: (Path(n).parent.name,))
    let_it_read(fake, monkeypatch)
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"num_samples": 4, "target_risk": 0.2, "no_page": True}
    done = vlmgate.calibrate("labelled", answers="exact", score="answer_probability", **options)
    assert done.gate is not None
    assert 'answers = "exact"' in Path("gate.toml").read_text() and read_gate(Path("gate.toml")).promise
    tonight = vlmgate.scan("labelled", gate="gate.toml", out="tonight.parquet")
    assert {row.answer_share for row in tonight.rows} == {None} and len(tonight.accepted) > 40
    assert [vlmgate.Gate.load("gate.toml").decide(row).route for row in tonight.rows] == [r.route for r in tonight.rows]
    with pytest.raises(GateError, match="calibrated for something else: answers 'drawn'"):
        vlmgate.scan("labelled", gate="gate.toml", out="other.parquet", answers="drawn")
    for folder in (".", "labelled"):
        Path(folder, TRIES_FILE).unlink()  # as if nobody had tried these labels
    drawn = vlmgate.calibrate("labelled", answers="drawn", out="drawn.toml", score="answer_share", **options)
    assert drawn.gate is not None and "answers" not in read_toml(Path("drawn.toml"))["reads"]
    assert read_gate(Path("drawn.toml")).promise, "a gate of before has no such key, and keeps its promise"
    tonight = vlmgate.scan("labelled", gate="drawn.toml", out="drawn_tonight.parquet")
    assert {row.answer_share for row in tonight.rows} == {1.0}
    with pytest.raises(GateError, match="calibrated for something else: answers 'exact'"):
        vlmgate.scan("labelled", gate="drawn.toml", out="other.parquet", answers="exact")


def test_a_calibration_by_shares_draws(tmp_path: Path) -> None:
    reading = asking(tmp_path, tmp_path / "r.parquet", "auto")
    for rules, answers in ((("answer_share",), "drawn"), (("", "answer_share >= 0.5"), "drawn"), (("",), "auto")):
        assert answering(reading, rules).sampling.answers == answers
    exact = asking(tmp_path, tmp_path / "r.parquet", "exact")
    assert answering(exact, ("answer_share",)) is exact, "which the plan then refuses"


def read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_shards_join_to_what_one_scan_writes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(8)))
    fake = Scores(lambda name: SURE if name < "4" else None, answer=lambda _: ("ok",))
    config = asking(folder, tmp_path / "whole.parquet")
    whole = scan(config, SilentProgress(), load=fake.load).records
    parts = []
    for index in (1, 2):
        part = replace(config, out=tmp_path / f"{index}.parquet", shard=Shard(index, 2))
        scan(part, SilentProgress(), load=fake.load)
        parts.append(part.out)
    done = merge(parts)
    assert [replace(row, seconds=None) for row in done.records] == [
        replace(row, seconds=None) for row in read_result(config.out)[0]
    ]
    assert [row.answer_probability for row in done.records] == [row.answer_probability for row in whole]
    assert done.provenance["sampling"]["answers"] == "exact"


def test_the_built_in_model_scores_its_answers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    config = asking(
        folder,
        tmp_path / "r.parquet",
        num_samples=2,
        score="vendi_score",
        limits=("answer_probability >= 0",),
        threshold=2.0,
    )
    (row,) = scan(config, SilentProgress()).records
    assert row.answer_finishes and {*row.answer_finishes} == {"scored"} and row.answer_share is None
    assert row.answer_probability is not None and 0 < row.answer_probability < 1 and row.abstain_rate is not None
    assert row.unparsable_rate is not None and row.unparsable_rate < 0.05

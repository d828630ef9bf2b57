"""Another score, kernel or gate for a result that is there: no model, no image."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.fakes import AGREE, FakeCaptioner, SilentProgress, config_for, folder_of
from vlmgate.data import Reason, Record, Route
from vlmgate.errors import OutputError, StoreError, UsageError
from vlmgate.gate.reasons import no_probability
from vlmgate.gate.rules import make_gate
from vlmgate.report.summary import routed_worst_first, worst_routed
from vlmgate.run.loop import scan
from vlmgate.run.rescore import Rescored, check_columns, check_output, rescore
from vlmgate.scores.diversity import Matrix, WordKernel, load_kernel
from vlmgate.store.result import read_result, write_result

NAMES = ("part_1.png", "part_2.png", "part_3.png", "refused.png")


APART = ("it is round", "a black thing", "one big plate", "some steel")  # differ, and contradict no answer


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A scan of six files, one of them broken and one a copy, with a question; the images are gone afterwards."""
    folder = folder_of(tmp_path / "in", *NAMES)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "copy.png").write_bytes((folder / "part_3.png").read_bytes())
    said = {"part_3.png": APART, "copy.png": APART, "refused.png": ("I cannot tell.",)}
    answers = {"part_2.png": ("ok", "ok", "unsure", "scratch")}
    fake = FakeCaptioner(
        lambda name: said.get(name, AGREE), answer=lambda n: answers.get(n, ("ok",)), features=lambda _: (1.0, 2.0)
    )
    config = config_for(folder, tmp_path / "r.parquet")
    asked = replace(config.sampling, question="Is it ok?", choices=("ok", "scratch"))
    scan(replace(config, sampling=asked), SilentProgress(), load=fake.load)
    shutil.rmtree(folder)
    return tmp_path / "r.parquet"


def again(result: Path, **options: object) -> Rescored:
    records, provenance = read_result(result)
    gate = make_gate(num_samples=4, answered=True, **options)  # type: ignore[arg-type]
    return rescore(records, provenance, gate, load_kernel("findings"), kernel_name="findings", source=result)


def rows_of(records: Sequence[Record]) -> dict[str, Record]:
    return {record.file_name: record for record in records}


def test_the_same_gate_and_kernel_give_the_same_rows(result: Path) -> None:
    assert again(result).records == read_result(result)[0]


@pytest.mark.parametrize("changed", [{"captions": AGREE[:1]}, {"error": "truncated"}])
def test_rows_that_no_scan_has_written_are_refused(result: Path, changed: dict[str, object]) -> None:
    records, provenance = read_result(result)
    whole = next(i for i, record in enumerate(records) if record.captions is not None)
    if "captions" in changed:
        changed |= {"caption_finishes": ("stop",), "caption_logprobs": (-0.5,)}
    records[whole] = replace(records[whole], **changed)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="was changed by something else"):
        rescore(records, provenance, make_gate(num_samples=4), WordKernel(), kernel_name="words", source=result)


def test_another_gate_needs_what_is_stored_only(result: Path) -> None:
    before = rows_of(read_result(result)[0])
    assert before["part_2.png"].decided_by == "answer_probability"
    done = again(result, score="vendi_score", threshold=4.0, limits=["answer_share >= 0.5"])
    accepted = {name for name, row in rows_of(done.records).items() if row.route == Route.AUTO_ACCEPT}
    assert accepted == {"part_1.png", "part_2.png", "part_3.png", "copy.png"}
    assert rows_of(done.records)["refused.png"].reason == Reason.REFUSED
    assert rows_of(done.records)["broken.png"].reason == Reason.UNREADABLE
    by_answer = again(result, score="answer_entropy", threshold=0.1, limits=["answer_share >= 0.5"])
    assert rows_of(by_answer.records)["part_2.png"].reason == Reason.DISAGREED


class Same:
    """Calls all captions one reading."""

    same = 0.5

    def __init__(self) -> None:
        self.prepared: list[Sequence[str]] = []

    def prepare(self, groups: object) -> None:
        self.prepared = list(groups)  # type: ignore[call-overload]

    def __call__(self, texts: Sequence[str]) -> Matrix:
        return np.ones((len(texts), len(texts)))


def test_another_kernel_makes_other_scores_and_the_provenance_says_so(result: Path) -> None:
    records, provenance = read_result(result)
    kernel = Same()
    gate = make_gate(num_samples=4, answered=True)
    done = rescore(records, provenance, gate, kernel, kernel_name="embedding:/models/x", source=result)
    row = rows_of(done.records)["part_3.png"]
    assert (row.vendi_score, row.route, row.caption) == (1.0, Route.AUTO_ACCEPT, APART[0])
    assert rows_of(done.records)["refused.png"].vendi_score is None
    assert len(kernel.prepared) == 4, "copies are compared once"
    assert done.provenance["kernel"] == "embedding:/models/x"
    told = done.provenance["rescored"]
    assert told["from"] == "r.parquet" and told["kernel_before"] == "findings"
    assert told["gate_before"] == provenance["gate"] and done.provenance["model"] == provenance["model"]


def test_the_features_survive_in_the_file(result: Path, tmp_path: Path) -> None:
    done = again(result)
    write_result(tmp_path / "new.parquet", done.records, done.provenance)
    assert read_result(tmp_path / "new.parquet")[0] == read_result(result)[0]
    assert rows_of(read_result(tmp_path / "new.parquet")[0])["part_1.png"].vision_features is not None


def test_a_result_of_before_there_were_answers_can_be_rescored(result: Path) -> None:
    records, provenance = read_result(result)
    old = [
        replace(r, answers=None, answer_finishes=None, answer_logprobs=None, sharpness=None, decided_by=None)
        for r in records
    ]
    sampling = {k: v for k, v in provenance["sampling"].items() if k not in ("question", "choices", "views")}
    gate = make_gate(num_samples=4, threshold=4.0)
    done = rescore(old, provenance | {"sampling": sampling}, gate, WordKernel(), kernel_name="words", source=result)
    assert rows_of(done.records)["part_2.png"].route == Route.AUTO_ACCEPT


def test_limits_on_what_the_result_does_not_hold_are_refused(result: Path) -> None:
    records, _ = read_result(result)
    check_columns(records, make_gate(num_samples=4, limits=["sharpness >= 1", "abstain_rate <= 0.5"]))
    for limit in ("novelty <= 1", "view_contrast <= 0.5"):
        with pytest.raises(UsageError, match="holds nothing of it"):
            check_columns(records, make_gate(num_samples=4, limits=[limit]))


def test_the_probability_of_answers_takes_their_tokens_which_results_of_before_have_not(result: Path) -> None:
    records, provenance = read_result(result)
    gate = make_gate(num_samples=4, threshold=4.0, limits=["answer_probability >= 0.5", "answer_share >= 0.5"])
    check_columns(records, gate)
    known = [replace(record, answer_probability=None) for record in records]
    done = rescore(known, provenance, gate, WordKernel(), kernel_name="words", source=result)
    found = {name: row.answer_probability for name, row in rows_of(done.records).items()}
    assert (found["part_1.png"], found["part_2.png"]) == (1.0, 0.5)
    gone = [replace(record, answer_tokens=None) for record in known]
    check_columns(gone, make_gate(num_samples=4, answered=True))  # shares stand in where nobody set a limit
    with pytest.raises(UsageError, match="answer_probability: this result holds nothing of it"):
        check_columns(gone, gate)
    done = rescore(gone, provenance, gate, WordKernel(), kernel_name="words", source=result)
    row = rows_of(done.records)["part_1.png"]
    assert (row.answer_probability, row.reason) == (None, Reason.NO_SCORE)
    assert no_probability(done.records) and no_probability(gone) and not no_probability(known)


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 of somebody else")
    for name, words in {"r.csv": "end in", "no/r.parquet": "no such folder", "mine.parquet": "no result"}.items():
        with pytest.raises(OutputError, match=words):
            check_output(tmp_path / name, tmp_path / "r.parquet")


def test_a_result_is_not_written_over_itself(result: Path) -> None:
    result.with_name("link.parquet").symlink_to(result)
    for out in (result, result.with_name("link.parquet")):
        with pytest.raises(OutputError, match="stays as it is"):
            check_output(out, result)


def test_what_is_no_reading_is_listed_first_whatever_its_answers(result: Path) -> None:
    gate = make_gate(num_samples=4, answered=True, score="answer_share", threshold=0.9)
    records, provenance = read_result(result)
    done = rescore(records, provenance, gate, WordKernel(), kernel_name="words", source=result)
    assert rows_of(done.records)["refused.png"].answer_share == 1
    assert [r.file_name for r in routed_worst_first(done.records, gate)] == ["broken.png", "refused.png", "part_2.png"]
    worst = worst_routed(done.records, gate)
    assert worst is not None and worst.file_name == "part_2.png"


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (("A brown dog runs", "The brown dog plays", "A dog in the park"), "a blue boat", Reason.NO_CLAIM),
        (("Собака бежит", "Собака играет", "Собака в парке"), "синяя лодка", Reason.UNKNOWN_LANGUAGE),
    ],
)
def test_kappa_orders_what_claims_nothing_and_accepts_none_of_it(
    tmp_path: Path, one: tuple[str, ...], other: str, reason: Reason
) -> None:
    names = [f"photo_{i:02}.png" for i in range(24)]
    alike = {name: tuple(f"{text} {i}" for text in one) for i, name in enumerate(names)}  # each has words of its own
    folder = folder_of(tmp_path / "in", *names)
    worst = names[17]
    fake = FakeCaptioner(lambda name: (*alike[name][:2], other, other) if name == worst else (alike[name][0],) * 4)
    scan(config_for(folder, tmp_path / "r.parquet"), SilentProgress(), load=fake.load)
    records, provenance = read_result(tmp_path / "r.parquet")
    assert {record.vendi_score for record in records} == {4.0}, "findings cannot order them"
    for options in ({}, {"threshold": 4.0}, {"review_budget": "0"}):
        gate = make_gate(num_samples=4, kernel="kappa", **options)  # type: ignore[arg-type]
        kernel = load_kernel("kappa")
        done = rescore(records, provenance, gate, kernel, kernel_name="kappa", source=tmp_path / "r.parquet")
        assert {(row.route, row.reason) for row in done.records} == {(Route.HUMAN_REVIEW, reason)}
        first, second, *_ = routed_worst_first(done.records, gate)
        assert first.file_name == worst and first.vendi_score > second.vendi_score  # type: ignore[operator]

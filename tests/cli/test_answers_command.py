"""Questions, limits and rescoring as a user types them, and what they are told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.test_cli import run
from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, folder_of, let_it_read
from vlmgate.store.result import read_result

ASK = ("--question", "Is it ok?", "--choices", "ok, scratch,crack")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    """Read with a fake: files with a 2 show a scratch, with a 3 nobody knows, with a 4 the captions name defects."""
    captions = {"2": ("a washer with a scratch",), "4": DISAGREE}
    answers = {"2": ("a scratch",), "3": ("unsure",), "5": ("ok", "ok", "scratch", "ok")}
    captioner = FakeCaptioner(
        lambda name: next((said for digit, said in captions.items() if digit in name), AGREE),
        answer=lambda name: next((said for digit, said in answers.items() if digit in name), ("OK.",)),
        features=lambda name: (1.0, float(len(name))),
    )
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(1, 6)))
    return captioner


def test_the_summary_tells_what_was_accepted_by_answer(fake: FakeCaptioner) -> None:
    out, _ = run("scan", "images", *ASK, "-k", 4)
    assert "answer_probability (or answer_share) ≥ 0.75 (uncalibrated default)" in out
    assert "vendi_score" not in out, "the answers decide"
    assert re.search(r"auto-accepted +3 +60\.0%", out)
    assert re.search(r"no answer +1 +20\.0%", out) and re.search(r"contradicted +1 +20\.0%", out)
    told = out[out.index("Auto-accepted by answer to 'Is it ok?':") :].splitlines()[1:4]
    assert [line.split() for line in told] == [["2", "ok"], ["1", "scratch"], ["0", "crack"]]
    assert fake.sampling.question == "Is it ok?" and fake.sampling.choices == ("ok", "scratch", "crack")
    assert fake.sampling.abstain and fake.sampling.max_answer_tokens == 16


def test_every_limit_is_a_line_of_the_summary_naming_its_column() -> None:
    out, _ = run("scan", "images", *ASK, "--limit", "answer_share >= 0.9", "--limit", "noise <= 0.5", "-k", 4)
    assert re.search(r"answer_share beyond limit +1 +20\.0%", out)
    assert re.search(r"noise beyond limit +2 +40\.0%", out) and re.search(r"contradicted +1 +20\.0%", out)
    assert "answer_share ≥ 0.9 and noise ≤ 0.5" in out and "vendi_score" not in out
    told = json.loads(run("show", "images.parquet", "--format", "json")[0])["summary"]
    assert told["human_review"]["reasons"]["beyond_limit:answer_share"]["images"] == 1
    assert told["human_review"]["answers"] == {"ok": 3, "scratch": 1}
    out, _ = run("show", "images.parquet", "--routed")
    assert re.search(r"answer_share beyond limit +part_5\.png", out)


def test_show_tells_the_answers_and_what_they_come_to() -> None:
    run("scan", "images", *ASK, "-k", 4)
    out, _ = run("show", "images.parquet", "part_5.png")
    assert re.search(r"3 +ok", out) and re.search(r"1 +scratch", out) and "They come to: ok" in out
    assert re.search(r"answer_share +0\.750 +lower = worse", out) and re.search(r"sharpness +\d+\.\d+", out)
    out, _ = run("show", "images.parquet", "part_3.png")
    assert "no choice was named more often than every other" in out and "They come to no answer." in out
    told = json.loads(run("show", "images.parquet", "part_3.png", "--format", "json")[0])
    assert told["answers"] == ["unsure"] * 4 and "vision_features" not in told


def test_hostile_answers_and_choices_reach_the_terminal_as_text(fake: FakeCaptioner) -> None:
    hostile = "[blink]\x1b]0;owned\x07 <script> \u202e[/x] :smile: ok"
    fake.answer = lambda name: (hostile if "1" in name else "ok",)
    out, err = run("scan", "images", "--choices", "ok,[red]bad[/red]", "-k", 4)
    out += run("show", "images.parquet", "part_1.png")[0]
    assert "\x1b" not in out + err and "\x07" not in out + err and "\u202e" not in out + err
    assert r"[blink]\x1b]0;owned\x07 <script> \u202e[/x] :smile: ok" in out.replace("\n", "")
    assert "[red]bad[/red]" in out


def test_choices_alone_ask_the_default_question(fake: FakeCaptioner) -> None:
    run("scan", "images", "--choices", "ok,scratch", "--no-abstain", "--max-answer-tokens", 8, "-k", 4)
    assert fake.sampling.question == "Which of these does the part show?"
    assert not fake.sampling.abstain and fake.sampling.max_answer_tokens == 8


def test_views_are_asked_for(fake: FakeCaptioner) -> None:
    run("scan", "images", "--views", 4, "--view-noise", 12.5, "-k", 8)
    assert (fake.sampling.views, fake.sampling.view_noise) == (4, 12.5)


def test_a_question_and_limits_may_stand_in_toml_and_in_the_environment(fake: FakeCaptioner, tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(
        'question = "Is it ok?"\nchoices = ["ok", "scratch"]\nno-abstain = true\n'
        'limit = ["answer_share >= 0.5", "noise <= 200"]\n'
    )
    out, _ = run("scan", "images", "--config", "gate.toml", "-k", 4)
    assert "answer_share ≥ 0.5 and noise ≤ 200" in out
    assert fake.sampling.choices == ("ok", "scratch") and not fake.sampling.abstain
    (tmp_path / "one.toml").write_text('choices = "ok,scratch"\nlimit = "noise <= 100"\n')
    assert "noise ≤ 100" in run("scan", "images", "--config", "one.toml", "-k", 4, "-o", "one.parquet")[0]
    limits = {"VLMGATE_SCAN_LIMIT": "noise<=100 sharpness>=0"}
    assert "noise ≤ 100 and sharpness ≥ 0" in run("scan", "images", "-o", "e.parquet", env=limits)[0]


def test_a_choice_with_a_comma_does_not_become_two(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text('choices = ["ok, clean", "scratch"]\n')
    _, err = run("scan", "images", "--config", "gate.toml", "--threshold", 4, code=2)
    assert "a comma parts one of 'choices' from the next" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--question", "Is it ok?"], "choices is ()"),
        (["--choices", "ok"], "two or more different ones"),
        (["--choices", "ok,unsure"], "'unsure' is how a model abstains"),
        (["--choices", "ok,,scratch"], "choices is"),
        (["--views", "3"], "views is 3; allowed: 1 or more that divides num_samples (8)"),
        (["--limit", "abstain_rate"], "--limit is 'abstain_rate'; give a column"),
        (["--limit", "abstain_rate <= 0.5"], "add --question"),
        (["--limit", "vendi_score >= 2"], "would accept the worst"),
        (["--kernel", "luck"], "--kernel is 'luck'; choose 'findings', 'words'"),
        (["--kernel", "nli:nowhere"], "holds no config.json"),
        (["--reference", "nowhere"], "nowhere"),
        (["--score", "novelty", "--threshold", "1", "--reference", "empty"], "no image found"),
    ],
)
def test_usage_errors_are_one_line_with_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "empty").mkdir()
    out, err = run("scan", "images", *arguments, code=2)
    assert out == "" and words in err
    lines = [line for line in err.splitlines() if not line.startswith("Looking for images")]
    assert len(lines) == 1 and lines[0].startswith("vlmgate: error: ")


def test_rescore_writes_another_result_and_leaves_the_first(fake: FakeCaptioner, tmp_path: Path) -> None:
    run("scan", "images", *ASK, "-k", 4)
    first, asked = (tmp_path / "images.parquet").read_bytes(), len(fake.history)
    by_captions = ("--score", "vendi_score", "--threshold", 4, "--limit", "answer_share >= 0.5")
    assert "add --score vendi_score" in run("rescore", "images.parquet", "--threshold", 4, code=2)[1]
    assert re.search(r"auto-accepted +3 +60\.0%", run("rescore", "images.parquet", *by_captions, "-o", "x.parquet")[0])
    out, _ = run("rescore", "images.parquet", *by_captions, "--limit", "contradiction <= 0.5")
    assert re.search(r"auto-accepted +4 +80\.0%", out) and "Wrote images.rescored.parquet (5 rows)." in out
    assert (tmp_path / "images.parquet").read_bytes() == first and len(fake.history) == asked
    records, provenance = read_result(tmp_path / "images.rescored.parquet")
    assert len(records) == 5 and provenance["rescored"]["from"] == "images.parquet"
    told = json.loads(
        run("rescore", "images.parquet", "--score", "answer_entropy", "--review-budget", "1", "-o", "b.parquet",
            "--kernel", "words", "--format", "json")[0]
    )  # fmt: skip
    assert told["gate"]["score"] == "answer_entropy" and told["output"] == "b.parquet"
    assert re.search(r"rescored\.from +images\.parquet", run("info", "b.parquet")[0])


def test_rescore_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    run("scan", "images", "-k", 4)
    assert "holds nothing of it" in run("rescore", "images.parquet", "--limit", "novelty <= 1", code=2)[1]
    assert "no default limit" in run("rescore", "images.parquet", "--score", "cocoa", code=2)[1]
    assert "end in .parquet" in run("rescore", "images.parquet", "-o", "x.csv", code=2)[1]
    assert "no such file" in run("rescore", "none.parquet", code=1)[1]
    (tmp_path / "mine.parquet").write_text("mine")
    assert "no result of vlmgate" in run("rescore", "images.parquet", "-o", "mine.parquet", code=2)[1]
    assert (tmp_path / "mine.parquet").read_text() == "mine"

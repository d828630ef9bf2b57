"""What a user types and what they are told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vlmgate.run.outcome
from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, folder_of, let_it_read
from vlmgate.cli import app
from vlmgate.store.result import read_result

runner = CliRunner()


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    """Let every command of these tests read with a fake that disagrees about files with a 3 in their name."""
    captioner = FakeCaptioner(lambda name: DISAGREE if "3" in name else AGREE)
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return captioner


def run(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
    result = runner.invoke(app, [str(a) for a in arguments], env=env)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def test_scan_writes_the_files_and_prints_the_table(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png", "part_2.png", "part_3.png", "[bold]part[/bold].png")
    (tmp_path / "images" / "notes.txt").write_text("x")
    out, err = run("scan", "images")
    assert re.search(r"auto-accepted +3 +75\.0% +1\.00", out)
    assert re.search(r"routed to human +1 +25\.0%", out)
    assert re.search(r"disagreed +1 +25\.0%", out)
    assert "Wrote images.parquet (4 rows)." in out
    assert "1 file ignored, being no image, first: notes.txt" in out
    assert re.search(r"Most often:\n +3  no defect\n", out)
    assert "uncalibrated default" in out
    assert "vlmgate show images.parquet part_3.png" in out and "show images.parquet --routed" in out
    assert "built-in model knows rendered sample parts only" in err
    assert {p.name for p in tmp_path.iterdir()} >= {"images.parquet", "images.log", "images.journal.jsonl"}


def test_unreadable_images_exit_with_3_and_are_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", "a.png", "b.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:50])
    out, _ = run("scan", "images", code=3)
    assert re.search(r"unreadable +1 +50\.0% +–", out)
    assert "1 image could not be read, first: a.png" in out


def test_json_on_stdout_is_one_object_with_a_version(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png", "part_3.png")
    out, _ = run("scan", "images", "--format", "json", "-q")
    told = json.loads(out)
    assert told["schema_version"] == 1 and told["complete"] is True and told["exit_code"] == 0
    assert told["summary"]["human_review"]["reasons"]["disagreed"]["images"] == 1
    for command in (["info", "images.parquet"], ["show", "images.parquet"], ["show", "images.parquet", "part_3.png"]):
        assert json.loads(run(*command, "--format", "json")[0])["schema_version"] == 1


def test_quiet_is_quiet(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png")
    assert run("scan", "images", "-q")[1] == ""


def test_more_routed_than_allowed_exits_with_4(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png", "part_3.png")
    run("scan", "images", "--max-routed", "50%")
    run("scan", "images", "--max-routed", "0", code=4)


def test_show_tells_the_captions_and_why(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "line/part_1.png", "line/part_3.png")
    run("scan", "images", "-k", 4)
    out, _ = run("show", "images.parquet", "part_3.png")
    assert "routed to human: the readings differ more than the limit allows: vendi_score 3.747, limit 1.250" in out
    assert "a brass gear with a dent" in out and "They differ on: " not in out
    assert "Claims: 1 of 4 crack · 1 of 4 dent · 1 of 4 nothing of the condition · 1 of 4 rust\n" in out
    run("rescore", "images.parquet", "--kernel", "words", "-o", "by_words.parquet")
    out, _ = run("show", "by_words.parquet", "part_3.png")
    assert "They differ on: " in out and "dent (1 of 4)" in out and "Claims: " not in out
    run("rescore", "images.parquet", "--kernel", "kappa", "-o", "by_kappa.parquet")
    assert "Claims: 1 of 4 crack" in run("show", "by_kappa.parquet", "part_3.png")[0]
    assert "vlmgate rescore" in run("scan", "images", "--kernel", "kappa", code=2)[1]
    out, _ = run("show", "images.parquet", "line/part_1.png")
    assert re.search(r"4 +a steel washer without visible defects", out)
    assert "did you mean 'line/part_1.png'" in run("show", "images.parquet", "part_11.png", code=2)[1]
    assert "2 images end in '.png'" in run("show", "images.parquet", ".png", code=2)[1]
    assert "has no page 2" in run("show", "images.parquet", "part_1.png", "--page", 2, code=2)[1]


def test_show_lists_what_is_routed_worst_first(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder = folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(5)))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    fake.say = lambda name: {"part_1.png": DISAGREE[:2], "part_3.png": DISAGREE[:4]}.get(name, AGREE)
    run("scan", "images", "-k", 4, code=3)
    out, _ = run("show", "images.parquet", "--routed")
    assert [line.split()[-1] for line in out.splitlines()] == ["broken.png", "part_3.png", "part_1.png"]
    told = json.loads(run("show", "images.parquet", "--routed", "--format", "json")[0])
    assert [row["file_name"] for row in told["routed"]] == ["broken.png", "part_3.png", "part_1.png"]
    assert "leave out the name" in run("show", "images.parquet", "part_1.png", "--routed", code=2)[1]


def test_info_tells_how_a_result_was_made(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png")
    run("scan", "images", "--seed", 7)
    out, _ = run("info", "images.parquet")
    assert re.search(r"sampling\.seed +7", out) and re.search(r"model\.model +builtin", out)


def test_hostile_captions_and_names_reach_the_terminal_as_text(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder_of(tmp_path / "images", "a[bold]b[/bold].png", "[/red].png", "evil\x1b[31m\u202egnp.png")
    hostile = "[blink]\x1b]0;owned\x07 <script> \u202e[/x] :smile: a dent"
    fake.say = lambda _: (hostile, *DISAGREE)
    out, err = run("scan", "images")
    for name in ("a[bold]b[/bold].png", "[/red].png", "evil\x1b[31m\u202egnp.png"):
        out += run("show", "images.parquet", name)[0]
    assert "\x1b" not in out + err and "\x07" not in out and "\u202e" not in out + err
    assert "a[bold]b[/bold].png" in out and "[/red].png" in out and r"evil\x1b[31m\u202egnp.png" in out
    assert r"[blink]\x1b]0;owned\x07 <script> \u202e[/x] :smile: a dent" in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan", "nowhere"], "nowhere: no such folder"),
        (["scan", "empty"], "no image found"),
        (["scan", "images", "-k", "1"], "num_samples is 1; allowed: 2 to 1024"),
        (["scan", "images", "--temperature", "0"], "temperature is 0.0"),
        (["scan", "images", "--threshold", "99"], "--threshold is 99.0"),
        (["scan", "images", "--threshold", "1.5", "--review-budget", "3"], "exclude each other"),
        (["scan", "images", "--max-routed", "many"], "--max-routed is 'many'"),
        (["scan", "images", "-o", "r.csv"], "must end in .parquet"),
        (["scan", "images", "-o", "no/where.parquet"], "no such folder"),
        (["scan", "images", "--config", "bad.toml"], "did you mean 'num_samples'"),
        (["scan", "images", "--config", "none.toml"], "cannot read the configuration"),
        (["scan", "images", "--config", "broken.toml"], "is not valid TOML"),
    ],
)
def test_usage_errors_are_one_line_with_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    folder_of(tmp_path / "images", "part_1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text("num_sample = 3")
    (tmp_path / "broken.toml").write_text("num_samples = = 3")
    out, err = run(*arguments, code=2)
    assert out == "" and words in err
    lines = [line for line in err.splitlines() if not line.startswith("Looking for images")]
    assert len(lines) == 1 and lines[0].startswith("vlmgate: error: ")


def test_a_file_that_is_no_result_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 nothing")
    for command in (["show", "mine.parquet"], ["info", "mine.parquet"], ["info", "none.parquet"]):
        assert run(*command, code=1)[1].count("\n") == 1


def test_flags_go_before_environment_before_toml_before_defaults(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png")
    (tmp_path / "vlmgate.toml").write_text('num-samples = 5\nseed = 5\ntemperature = 0.5\npages = "all"\n')
    environment = {"VLMGATE_SCAN_NUM_SAMPLES": "6", "VLMGATE_SCAN_SEED": "6"}
    run("scan", "images", "--config", "vlmgate.toml", "-k", 7, env=environment)
    sampling = read_result(tmp_path / "images.parquet")[1]["sampling"]
    assert (sampling["num_samples"], sampling["seed"], sampling["temperature"], sampling["top_p"]) == (7, 6, 0.5, 1.0)


def test_a_crash_is_one_line_and_its_traceback_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "images", "part_1.png")

    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(vlmgate.run.outcome, "build_rows", bug)
    _, err = run("scan", "images", code=1)
    assert "internal error (ZeroDivisionError: a bug)" in err.splitlines()[-1] and "images.log" in err
    assert "Traceback" in (tmp_path / "images.log").read_text()


def test_doctor_tells_of_the_machine_and_of_a_model_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out, err = run("doctor", "--model", "empty", code=1)
    assert re.search(r"torch +\d", out) and re.search(r"model\.loads +no", out)
    assert err.count("\n") == 1 and "config.json" in err
    told = json.loads(run("doctor", "--model", "./nowhere", "--format", "json", code=1)[0])
    assert told["schema_version"] == 1 and told["model"]["loads"] == "no"


def test_toml_may_set_any_option_but_not_with_any_value(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "part_1.png")
    (tmp_path / "good.toml").write_text('format = "json"\nquiet = true\nreview-budget = 0\n')
    out, err = run("scan", "images", "--config", "good.toml")
    assert json.loads(out)["gate"]["budget_count"] == 0 and err == ""
    assert json.loads(run("scan", "images", env={"VLMGATE_SCAN_FORMAT": "json"})[0])["complete"] is True
    (tmp_path / "bad.toml").write_text("threshold = true\n")
    assert "threshold = True is no value" in run("scan", "images", "--config", "bad.toml", code=2)[1]


def test_version() -> None:
    assert run("--version")[0] == f"vlmgate {vlmgate.__version__}\n"

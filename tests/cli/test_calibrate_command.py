"""From a labelled folder to a gate, and from the gate to a split folder, as a user types it."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vlmgate.calibration.run
import vlmgate.calibration.tries
from tests.support.fakes import FakeCaptioner, folder_of, let_it_read, picture_file
from vlmgate.calibration.choose import _images_at
from vlmgate.calibration.guarantee import interval, upper_bound
from vlmgate.calibration.text import CalibrationProgress
from vlmgate.cli import app
from vlmgate.data import Reason, Route
from vlmgate.gate.file import read_gate
from vlmgate.store.result import TRIES_FILE, read_provenance, read_result, write_result

runner = CliRunner()
CLASSES = ("none", "dent", "crack")
PER_CLASS = 60


def number_of(name: str) -> int:
    return int(re.search(r"(\d+)", name.rsplit("/", 1)[-1]).group(1))  # type: ignore[union-attr]


def is_hard(name: str) -> bool:
    return number_of(name) % 5 == 0


def say(name: str) -> tuple[str, ...]:
    """Describe a part as its folder says; of hard ones every sample says something else, the answer mostly wrong."""
    if is_hard(name):
        return ("a dent", "no defect at all", "a long crack", "rust on a gear", "some stains", "a plate")
    return (f"a part with {name.split('/')[0]}",)


def answer(name: str) -> tuple[str, ...]:
    truth = next((c for c in CLASSES if f"{c}_" in name), "none")
    other = CLASSES[(CLASSES.index(truth) + 1) % 3]
    return (other, truth, other, other, "unsure") if is_hard(name) else (truth,)


def features(name: str) -> tuple[float, ...]:
    rng = np.random.default_rng(zlib.crc32(re.sub(r"_frame\d+", "", name).encode()))  # frames of a part are alike
    return tuple(rng.normal(5.0 if "alien" in name else 0.0, 1.0, 6))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    captioner = FakeCaptioner(say, answer=answer, features=features)
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return captioner


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `labelled/` and what `calibrate labelled` made of it; tests work on copies."""
    base = tmp_path_factory.mktemp("once")
    folder_of(base / "labelled", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(PER_CLASS)))
    with pytest.MonkeyPatch.context() as patch:
        let_it_read(FakeCaptioner(say, answer=answer, features=features), patch)
        patch.chdir(base)
        run("calibrate", "labelled")
    return base


@pytest.fixture
def labelled(once: Path, tmp_path: Path) -> Path:
    """Return labelled images that nothing has read yet."""
    return Path(shutil.copytree(once / "labelled", tmp_path / "labelled", ignore=lambda *_: [TRIES_FILE]))


@pytest.fixture
def calibrated(once: Path, tmp_path: Path) -> Path:
    """Return labelled images, not to be changed, with a copy of their gate, readings and journal at hand."""
    for folder in (once, once / "labelled"):
        (folder / TRIES_FILE).unlink(missing_ok=True)  # each test is the first to try
    for path in once.iterdir():
        if path.is_file():
            shutil.copy2(path, tmp_path)
    return once / "labelled"


def run(*arguments: object, code: int = 0, page: bool = False) -> tuple[str, str]:
    if arguments[0] == "calibrate" and not page:
        arguments = (*arguments, "--no-page")
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def test_from_labels_to_a_gate_to_a_split_folder(labelled: Path, tmp_path: Path) -> None:
    told, _ = run("calibrate", labelled, "--cost-escape", 100, "--cost-review", 1, page=True)
    assert "a sub-folder for each class" in told and "none 60" in told
    assert "Promise: at most 10% of accepted readings are wrong, with 95% confidence" in told
    assert "nan" not in told.lower()
    gate = read_gate(tmp_path / "gate.toml")
    assert gate.promise["errors"] == 0 and gate.data["images"] == 180
    assert gate.sampling["choices"] == ("crack", "dent", "none")
    assert gate.measures_novelty and gate.features is not None

    names = [f"{c}_{i:03d}.png" for c in ("crack", "dent", "none") for i in range(20)]
    folder_of(tmp_path / "tonight", *names, "alien_001.png")
    told, _ = run("scan", tmp_path / "tonight", "--gate", "gate.toml")
    assert "gate.toml, 20" in told and "promises, with 95% confidence" in told
    rows, provenance = read_result(tmp_path / "tonight.parquet")
    assert provenance["sampling"]["num_samples"] == gate.sampling["num_samples"]
    routes = {row.file_name: (row.route, row.reason, row.decided_by) for row in rows}
    assert routes["alien_001.png"][1:] == ("beyond_limit", "novelty")
    wrong = [n for n in routes if is_hard(n) and routes[n][0] == "auto_accept"]
    assert not wrong
    assert sum(route == "auto_accept" for route, *_ in routes.values()) >= 25
    assert provenance["drift"]["images"] == 61


def test_the_same_command_reads_nothing_twice_and_a_result_needs_no_model(
    calibrated: Path, tmp_path: Path, fake: FakeCaptioner
) -> None:
    seconds = read_provenance(tmp_path / "gate.parquet")[vlmgate.calibration.run.TIMED]
    assert set(seconds) == {"2", "3", "4", "6", "8", "12", "16"}
    first = (tmp_path / "gate.toml").read_text(encoding="utf-8")
    run("calibrate", calibrated)
    assert fake.history == []
    assert read_provenance(tmp_path / "gate.parquet")[vlmgate.calibration.run.TIMED] == seconds
    run("calibrate", "gate.parquet", "-o", "again.toml")
    run("calibrate", "gate.parquet", "--labels", calibrated, "-o", "third.toml")
    assert fake.history == []
    gates = [read_gate(tmp_path / name).gate.threshold for name in ("gate.toml", "again.toml", "third.toml")]
    assert len(set(gates)) == 1 and "threshold" in first


def test_json_holds_everything_and_no_nan(calibrated: Path) -> None:
    told, _ = run("calibrate", calibrated, "--format", "json", "--cost-escape", 100, "--per-answer")
    tree = json.loads(told)
    assert tree["schema_version"] == 1 and tree["promise"]["holds"]
    assert {row["score"] for row in tree["quality"]} >= {
        "vendi_score",
        "answer_share",
        "answer_probability",
        "random",
        "abstain_rate",
    }
    assert [row["num_samples"] for row in tree["samples"]] == [2, 3, 4, 6, 8, 12, 16]
    assert tree["costs"]["per_1000_images"][0]["name"] == "review all"
    assert tree["written"]["gate"] == "gate.toml"


def test_what_the_labels_cannot_support_ends_with_2_and_a_number(labelled: Path, tmp_path: Path) -> None:
    told, said = run("calibrate", labelled, "--target-risk", "1%", code=2)
    assert "No promise" in told
    needed = int(re.search(r"takes about ([\d,]+) new labelled images", said).group(1).replace(",", ""))  # type: ignore[union-attr]
    assert needed > 299
    assert not (tmp_path / "gate.toml").exists() and (tmp_path / "gate.parquet").exists()


def test_escapes_are_bounded_among_defective_parts(calibrated: Path, tmp_path: Path) -> None:
    told, _ = run("calibrate", calibrated, "--target", "escapes", "--target-risk", "5%")
    assert "of defective parts pass as good" in told and "Overkill" in told
    promise = read_gate(tmp_path / "gate.toml").promise
    assert promise["target"] == "escapes" and promise["upper_bound"] <= 0.05


def test_the_gate_of_least_cost(calibrated: Path, tmp_path: Path) -> None:
    run("calibrate", calibrated, "--rule", "cost", code=2)
    told, _ = run("calibrate", calibrated, "--rule", "cost", "--cost-escape", 50, "--cost-review", 2)
    assert "cheapest gate" in told
    assert read_gate(tmp_path / "gate.toml").promise == {}
    told, _ = run("calibrate", calibrated, "--rule", "cost", "--cost-overhead", 1e9, "-o", "dear.toml")
    assert "costs as much as reviewing all" in told


def test_verdicts_come_back(calibrated: Path, tmp_path: Path) -> None:
    rows, _ = read_result(tmp_path / "gate.parquet")
    lines = ["file_name,page,sha256,verdict"]
    lines += [f"x,1,{r.sha256},{'wrong' if is_hard(r.file_name) else 'correct'}" for r in rows]
    (tmp_path / "verdicts.csv").write_text("\n".join(lines), encoding="utf-8")
    told, _ = run("calibrate", "gate.parquet", "--labels", "verdicts.csv", "-o", "v.toml")
    assert "csv with verdicts" in told and "correct 144, wrong 36" in told


def test_verdicts_of_routed_images_alone_are_refused(calibrated: Path, tmp_path: Path) -> None:
    rows, _ = read_result(tmp_path / "gate.parquet")
    routed = [r for r in rows if r.route == "human_review"]
    lines = ["sha256,verdict", *(f"{r.sha256},wrong" for r in routed)]
    (tmp_path / "verdicts.csv").write_text("\n".join(lines), encoding="utf-8")
    _, said = run("calibrate", "gate.parquet", "--labels", "verdicts.csv", "-o", "v.toml", code=2)
    assert "none of the auto-accepted images has a verdict" in said


def test_verdicts_of_all_routed_and_some_accepted_are_evened_out(calibrated: Path, tmp_path: Path) -> None:
    rows, _ = read_result(tmp_path / "gate.parquet")
    accepted = [r for r in rows if r.route == "auto_accept"]
    judged = [r for r in rows if r.route == "human_review"] + accepted[: len(accepted) // 2]
    lines = ["sha256,verdict", *(f"{r.sha256},{'wrong' if is_hard(r.file_name) else 'correct'}" for r in judged)]
    (tmp_path / "verdicts.csv").write_text("\n".join(lines), encoding="utf-8")
    told, _ = run("calibrate", "gate.parquet", "--labels", "verdicts.csv", "-o", "v.toml", "--target-risk", "20%")
    assert "verdicts set aside" in told


def test_ambiguity_as_the_target(tmp_path: Path, fake: FakeCaptioner) -> None:
    fake.say = lambda name: say(name) if is_hard(name) else ("a part without defects",)
    names = [f"{'ambiguous' if i % 5 == 0 else 'clear'}/p_{i:03d}.png" for i in range(150)]
    folder_of(tmp_path / "pictures", *names)
    told, _ = run("calibrate", tmp_path / "pictures")
    assert "ambiguity itself" in told and "at most 10% of accepted readings are ambiguous" in told
    assert read_gate(tmp_path / "gate.toml").sampling["question"] is None


def test_other_names_for_labels(labelled: Path, tmp_path: Path) -> None:
    (labelled / "none").rename(labelled / "OK parts")
    told, _ = run("calibrate", labelled, "--label-map", "ok_parts=none", "--label-map", "crack=", "-o", "m.toml")
    assert "dent 60, none 60" in told or "none 60, dent 60" in told
    assert read_gate(tmp_path / "m.toml").sampling["choices"] == ("dent", "none")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--score", "beauty"], "these readings have none"),
        (["--good", "perfect"], "none of the classes"),
        (["--gate-samples", "32"], "16 samples were drawn"),
        (["--target-risk", "ten"], "--target-risk is 'ten'"),
        (["--target-risk", "0%"], "target_risk"),
        (["--confidence", "20%"], "confidence"),
        (["--label-map", "dent"], "NAME=CHOICE"),
        (["--limit", "novelty <= 2"], "--novelty-limit"),
        (["-o", "gate.yaml"], "must end in .toml"),
        (["-o", "nowhere/gate.toml"], "no such folder"),
        (["--labels", "nothing.csv"], "no such folder or table"),
        (["--cost-review", "-1"], "review is -1.0"),
        (["--kernel", "magic"], "kernel"),
    ],
    ids=lambda v: " ".join(v)[:20] if isinstance(v, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(calibrated: Path, arguments: list[str], said: str) -> None:
    _, error = run("calibrate", calibrated, "-q", *arguments, code=2)
    assert said in error and error.count("\n") == 1


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    folder_of(tmp_path / "one", *(f"good/{i}.png" for i in range(5)))
    _, error = run("calibrate", tmp_path / "one", "-q", code=2)
    assert "two classes" in error


def test_few_wrong_readings_are_said_and_give_no_nan(tmp_path: Path) -> None:
    folder_of(tmp_path / "easy", *(f"{c}/{c}_{i}.png" for c in CLASSES for i in range(1, 200, 5)))
    told, _ = run("calibrate", tmp_path / "easy")
    assert "only 0 wrong readings" in told and "nan" not in told.lower()


def test_labels_that_match_no_image(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("file_name,label\nelsewhere.png,none\n", encoding="utf-8")
    _, error = run("calibrate", "gate.parquet", "--labels", "l.csv", "-o", "x.toml", "-q", code=2)
    assert "none of its 1 labels matches" in error and "elsewhere.png" in error


def test_exact_copies_count_once(labelled: Path, tmp_path: Path) -> None:
    (labelled / "dent" / "copy_1.png").write_bytes((labelled / "dent" / "dent_001.png").read_bytes())
    (labelled / "none" / "copy_2.png").write_bytes((labelled / "dent" / "dent_002.png").read_bytes())
    told, _ = run("calibrate", labelled)
    assert "1 exact cop" in told or "2 exact copies" in told
    assert "1 images whose copies have different labels" in told
    assert "179 labelled readings" in told


def test_unreadable_images_are_left_out_and_said(labelled: Path) -> None:
    (labelled / "dent" / "broken_1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    told, _ = run("calibrate", labelled)
    assert "1 labelled images that could not be read" in told and "180 labelled readings" in told


def test_a_stop_goes_on(labelled: Path, tmp_path: Path, fake: FakeCaptioner, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake.read
    calls = 0

    def stops(pictures: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(pictures)  # type: ignore[arg-type]

    monkeypatch.setattr(fake, "read", stops)
    run("calibrate", labelled, code=130)
    read = set(fake.read_names)
    fake.history.clear()
    monkeypatch.setattr(fake, "read", real)
    run("calibrate", labelled)
    assert len(read) == 24
    assert sum(name in read for batch in fake.history[:20] for name in batch) == 0  # then the time is measured


def test_the_gate_refuses_what_it_was_not_made_for(calibrated: Path, tmp_path: Path) -> None:
    picture_file(tmp_path / "tonight" / "none_001.png")
    for arguments, said in (
        (["-k", "4"], "num-samples"),
        (["--prompt", "What is it?"], "prompt"),
        (["--threshold", "2"], "exclude each other"),
        (["--limit", "noise <= 3"], "exclude each other"),
        (["--score", "cocoa"], "leave out --score"),
    ):
        _, error = run("scan", tmp_path / "tonight", "--gate", "gate.toml", "-q", *arguments, code=2)
        assert said in error
    features = read_gate(tmp_path / "gate.toml").features
    (tmp_path / str(features)).unlink()
    _, error = run("scan", tmp_path / "tonight", "--gate", "gate.toml", "-q", code=2)
    assert str(features) in error


ALARM = "Nothing is promised of this result: its images do not look like those that the gate was calibrated on ("


def test_a_changed_folder_raises_the_alarm(calibrated: Path, tmp_path: Path) -> None:
    run("calibrate", calibrated, "--novelty-limit", "inf")
    folder_of(tmp_path / "other", *(f"alien_{i:03d}.png" for i in range(60)))
    told, _ = run("scan", tmp_path / "other", "--gate", "gate.toml", "--max-routed", "0", code=5)
    assert told.splitlines()[2].startswith(ALARM) and told.count(ALARM) == 1 and "The gate promises" not in told
    assert "novelty" in told and "Most unlike: alien_" in told
    assert ALARM in Path("other.log").read_text(encoding="utf-8")
    text, _ = run("scan", tmp_path / "other", "--gate", "gate.toml", "--format", "json", code=5)
    found = json.loads(text)
    assert found["drift"]["alarm"] and found["promise"] is None and found["exit_code"] == 5
    assert found["warnings"][0].startswith(ALARM)
    run("review", "other.parquet", "--accepted", 5)
    assert ALARM in Path("other_review/index.html").read_text(encoding="utf-8")
    told, _ = run("show", "other.parquet")
    assert ALARM in told and "The gate promises" not in told


def test_what_becomes_of_a_changed_folder_is_for_the_user_to_say(
    calibrated: Path, tmp_path: Path, fake: FakeCaptioner
) -> None:
    folder_of(tmp_path / "other", *(f"none_{i:03d}.png" for i in range(60)))  # no defects any more
    scan = ("scan", tmp_path / "other", "--gate", "gate.toml", "--on-drift")
    out, error = run(*scan, "stop", code=5)
    assert out == "" and ALARM in error and "No result was written" in error and not Path("other.parquet").exists()
    read = len(fake.history)
    run(*scan, "warn", code=5)
    accepted = [row for row in read_result(Path("other.parquet"))[0] if row.route == Route.AUTO_ACCEPT]
    assert accepted and len(fake.history) == read, "the readings were kept"
    out, error = run(*scan, "stop", "--format", "json", code=5)
    assert json.loads(out)["output"] is None and "An earlier result is now other.before_drift.parquet" in error
    assert not Path("other.parquet").exists() and Path("other.before_drift.parquet").exists()
    told, _ = run(*scan, "route", code=5)
    rows, provenance = read_result(Path("other.parquet"))
    assert {row.route for row in rows} == {Route.HUMAN_REVIEW} and provenance["on_drift"] == "route"
    assert sum(row.reason == Reason.DRIFTED for row in rows) == len(accepted)
    assert "unlike the calibrated images" in told and len(fake.history) == read
    run("rescore", "other.parquet", "--score", "vendi_score", "--threshold", 2, code=5)
    rows, provenance = read_result(Path("other.rescored.parquet"))
    assert {row.route for row in rows} == {Route.HUMAN_REVIEW} and provenance["drift"]["alarm"]
    _, error = run("scan", tmp_path / "other", "--on-drift", "route", code=2)
    assert "--on-drift is for --gate" in error
    _, error = run(*scan, "stop", "--shard", "1/2", code=2)
    assert "give it to `vlmgate merge`" in error


def test_shards_of_a_changed_folder_are_judged_as_a_whole(calibrated: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "other", *(f"none_{i:03d}.png" for i in range(60)))  # no defects any more
    parts = [f"{i}.parquet" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        run("scan", tmp_path / "other", "--gate", "gate.toml", "--shard", f"{i}/2", "-o", part, code=5)
    told, _ = run("merge", *parts, "-o", "all.parquet", code=5)
    assert ALARM in told and read_provenance(Path("all.parquet"))["promise"] is None
    run("merge", *parts, "-o", "none.parquet", "--on-drift", "route", code=5)
    for i, part in enumerate(parts, 1):
        routes = ("scan", tmp_path / "other", "--gate", "gate.toml", "--shard", f"{i}/2", "-o", f"routed_{part}")
        run(*routes, "--on-drift", "route", code=5)
    run("merge", *(f"routed_{part}" for part in parts), "-o", "again.parquet", code=5)
    assert {row.route for row in read_result(Path("again.parquet"))[0]} == {Route.HUMAN_REVIEW}, "as the parts say"
    routes = [[row.route for row in read_result(Path(f"{name}.parquet"))[0]] for name in ("all", "none")]
    assert Route.AUTO_ACCEPT in routes[0] and set(routes[1]) == {Route.HUMAN_REVIEW}
    _, error = run("merge", *parts, "-o", "stopped.parquet", "--on-drift", "stop", code=5)
    assert ALARM in error and not Path("stopped.parquet").exists()


def test_a_shard_that_drifted_is_merged_with_one_that_did_not(calibrated: Path, tmp_path: Path) -> None:
    names = [f"none_{i:03d}.png" for i in range(25)] + [f"crack_{i:03d}.png" for i in range(12)]
    folder_of(tmp_path / "other", *names)
    codes = []
    for i in (1, 2, 3):
        scan = ["scan", tmp_path / "other", "--gate", "gate.toml", "--shard", f"{i}/3", "-o", f"{i}.parquet"]
        codes.append(CliRunner().invoke(app, [str(one) for one in scan]).exit_code)
    assert set(codes) <= {0, 5}
    provenances = [read_provenance(Path(f"{i}.parquet")) for i in (1, 2, 3)]
    path = Path("1.parquet")
    write_result(
        path, read_result(path)[0], provenances[0] | {"promise": None, "drift": {"alarm": True, "columns": []}}
    )
    merged = CliRunner().invoke(app, ["merge", "1.parquet", "2.parquet", "3.parquet", "-o", "all.parquet"])
    assert merged.exit_code in (0, 5), merged.output


def test_a_check_of_drift_that_fails_is_an_alarm(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "tonight", *(f"{c}_{i:03d}.png" for c in CLASSES for i in range(10)))

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vlmgate.gate.run_gate._drift", fails)
    told, _ = run("scan", tmp_path / "tonight", "--gate", "gate.toml", code=5)
    assert "could not be checked; see the log" in told and "The gate promises" not in told
    run("scan", tmp_path / "tonight", "--gate", "gate.toml", "--on-drift", "route", code=5)
    assert {row.route for row in read_result(Path("tonight.parquet"))[0]} == {Route.HUMAN_REVIEW}


def test_hostile_names_stay_text_on_the_page(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    names = [f"{c}/{c}_{i:03d}.png" for c in (hostile.replace("/", ""), "none") for i in range(1, 90)]
    folder_of(tmp_path / "odd", *names)
    run("calibrate", tmp_path / "odd", "--good", "none", "--target-risk", "40%", code=2, page=True)
    page = (tmp_path / "gate_calibration" / "index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "default-src 'none'" in page and "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_the_progress_says_what_happens(labelled: Path) -> None:
    _, error = run("calibrate", labelled, page=True)
    for text in ("Looking for images", "Measuring the time", "Comparing 180 readings", "Drawing the page"):
        assert text in error


def test_toml_may_hold_one_or_several(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'label-map = ["crack=dent", "odd="]\nkernel = "words"\ntarget-risk = "20%"\nper-answer = true\n'
    )
    told, _ = run("calibrate", labelled, "--config", "c.toml")
    assert "dent 120, none 60" in told and "at most 20%" in told


def test_the_cheapest_gate_promises_nothing_anywhere(calibrated: Path, tmp_path: Path) -> None:
    told, _ = run("calibrate", calibrated, "--rule", "cost", "--cost-escape", 50, "--cost-review", 2, page=True)
    page = (tmp_path / "gate_calibration" / "index.html").read_text(encoding="utf-8")
    for text in (told, page):
        assert "promises nothing of its risk" in text and "Promise:" not in text
    assert "guaranteed gate" not in told


def test_a_gate_that_was_edited_promises_nothing(calibrated: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text(re.sub(r"(?m)^threshold = .*$", "threshold = 0.01", gate.read_text(encoding="utf-8")))
    folder_of(tmp_path / "tonight", *(f"none_{i:03d}.png" for i in range(30)))
    told, _ = run("scan", tmp_path / "tonight", "--gate", "gate.toml", code=5)
    assert "edited since it was calibrated, so it promises nothing" in told and "The gate promises" not in told


def test_the_calibrated_folder_itself_looks_like_itself(calibrated: Path) -> None:
    told, _ = run("scan", calibrated, "--gate", "gate.toml", "-o", "again.parquet")
    assert "do not look like" not in told


def test_a_run_that_was_not_finished_is_no_calibration_set(
    labelled: Path, fake: FakeCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fake.read, iter(range(100))

    def stops(pictures: object) -> object:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(pictures)  # type: ignore[arg-type]

    monkeypatch.setattr(fake, "read", stops)
    _, said = run("calibrate", labelled, code=130)
    assert "The same command goes on" in said
    _, said = run("calibrate", "gate.parquet", "--labels", labelled, "-q", code=2)
    assert "was not finished" in said


def test_a_verdict_is_on_what_was_judged(calibrated: Path, tmp_path: Path) -> None:
    """Fewer samples of a hard image come to another answer, which nobody has judged; it counts as wrong."""
    rows, _ = read_result(tmp_path / "gate.parquet")
    lines = ["sha256,verdict", *(f"{r.sha256},correct" for r in rows)]
    (tmp_path / "verdicts.csv").write_text("\n".join(lines), encoding="utf-8")
    told, _ = run("calibrate", "gate.parquet", "--labels", "verdicts.csv", "-o", "v.toml", "--gate-samples", 2)
    assert "With 2 samples each, 36 are wrong" in told


def test_a_promise_of_risk_is_for_the_mix_of_the_labels(calibrated: Path) -> None:
    told, _ = run("calibrate", calibrated, "--defect-rate", "1%", "--cost-escape", 50)
    assert "hold 66.7% defective parts, the line 1%: the promise is for the former mix" in told


def test_what_would_be_lost_or_never_used_is_refused_first(labelled: Path, tmp_path: Path, fake: FakeCaptioner) -> None:
    (tmp_path / "settings.toml").write_text("[project]\n")
    folder_of(tmp_path / "other", "good/a.png", "bad/b.png")
    folder_of(tmp_path / "comma", "crack, deep/a.png", "good/b.png")
    for arguments, said in (
        ([labelled, "-o", "settings.toml"], "is no gate"),
        ([labelled, "--defect-rate", "1%"], "none is given"),
        ([labelled, "--labels", tmp_path / "other"], "another folder of images"),
        ([tmp_path / "comma"], "has a comma"),
    ):
        _, error = run("calibrate", *arguments, "-q", code=2)
        assert said in error and error.count("\n") == 1
    assert fake.history == [] and (tmp_path / "settings.toml").read_text() == "[project]\n"


def test_two_gates_of_one_name_keep_their_features(calibrated: Path, tmp_path: Path) -> None:
    run("calibrate", "gate.parquet", "--labels", calibrated, "--label-map", "crack=")
    folder_of(tmp_path / "tonight", *(f"none_{i:03d}.png" for i in range(5)))
    for gate in ("gate.toml", "gate.old.toml"):
        run("scan", tmp_path / "tonight", "--gate", gate, "-o", f"{gate[:-5]}_t.parquet")


# --- one part is one trial --------------------------------------------------------------------------------------------


def frames(folder: Path, parts: int, each: int) -> Path:
    """Make frames of parts, of which `features` are alike."""
    names = [f"{CLASSES[i % 3]}/{CLASSES[i % 3]}_{i:03d}_frame{k}.png" for i in range(parts) for k in range(each)]
    return folder_of(folder, *names)


def test_frames_of_a_part_count_once_however_they_are_named(tmp_path: Path) -> None:
    """By their looks, by a pattern and by a column: one part is one trial, and the gate says how many there were."""
    folder = frames(tmp_path / "burst", 60, 3)
    told, _ = run("calibrate", folder, "-o", "looks.toml", "--target-risk", "20%")
    assert "180 images look like 60 parts" in told and "parts have an accepted image that is wrong" in told
    pattern = r"(?P<part>[^/]+)_frame"
    told, _ = run("calibrate", folder, "-o", "pattern.toml", "--target-risk", "20%", "--group-pattern", pattern)
    assert "180 images show 60 parts" in told
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    rows = ["file_name,label,unit", *(f"{n},{n.split('/')[0]},{n.split('_frame')[0]}" for n in names)]
    (tmp_path / "l.csv").write_text("\n".join(rows), encoding="utf-8")
    arguments = ("--labels", "l.csv", "-o", "column.toml", "--target-risk", "20%", "--group", "unit")
    run("calibrate", "looks.parquet", *arguments)
    gates = [read_gate(tmp_path / f"{name}.toml") for name in ("looks", "pattern", "column")]
    assert {gate.data["parts"] for gate in gates} == {60}
    assert any("180 images look like 60 parts" in text for text in gates[0].data["warnings"])
    assert len({(gate.promise["of"], gate.gate.threshold) for gate in gates}) == 1
    assert gates[0].promise["of"] <= 60


def test_ten_frames_a_part_make_no_promise_out_of_nothing(tmp_path: Path) -> None:
    once, often = frames(tmp_path / "once", 30, 1), frames(tmp_path / "often", 30, 10)
    told, _ = run("calibrate", once, "-o", "once.toml", code=2)
    assert "No promise" in told
    told, _ = run("calibrate", often, "-o", "often.toml", "--format", "json", code=2)
    tree = json.loads(told)
    assert not tree["promise"]["holds"] and tree["parts"] == 30 and tree["images"] == 300
    assert any("300 images look like 30 parts" in text for text in tree["warnings"])
    for folder in (tmp_path, often):
        (folder / TRIES_FILE).unlink()
    told, _ = run("calibrate", often, "-o", "apart.toml", "--group-pattern", "(?P<part>.+)")
    assert "Promise" in told and "they look like 30 parts, fewer than the groups say" in told


def test_a_file_that_says_no_part_ends_the_run_before_anything_is_read(
    tmp_path: Path, labelled: Path, fake: FakeCaptioner
) -> None:
    _, error = run("calibrate", labelled, "-q", "--group-pattern", r"(?P<part>none)_", code=2)
    assert "--group-pattern says nothing of 120 labelled images" in error and error.count("\n") == 1
    _, error = run("calibrate", labelled, "-q", "--group", "unit", code=2)
    assert "no table has the column 'unit'" in error
    _, error = run("calibrate", labelled, "-q", "--group", "unit", "--group-pattern", "(?P<part>.)", code=2)
    assert "exclude each other" in error
    assert fake.history == []


def test_without_features_the_check_for_near_copies_is_said_not_to_be_made(labelled: Path, fake: FakeCaptioner) -> None:
    fake.features = lambda name: None
    told, _ = run("calibrate", labelled)
    assert "whether some images are near copies was not checked" in told


# --- tries on the same labels -----------------------------------------------------------------------------------------


def test_other_options_on_the_same_labels_promise_nothing(calibrated: Path, tmp_path: Path) -> None:
    run("calibrate", calibrated)
    assert read_gate(tmp_path / "gate.toml").promise
    told, error = run("calibrate", calibrated, "-o", "second.toml", "--score", "vendi_score", "-q", page=True)
    why = "this is try 2 on the same labels, and no more was declared at the first."
    assert error == f"vlmgate: second.toml promises nothing: {why}\n"
    page = (tmp_path / "second_calibration" / "index.html").read_text(encoding="utf-8")
    for text in (told, page):
        assert "No promise: this is try 2 on these labels, and no more was declared at the first" in text
        assert "Promise: " not in text
    gate = read_gate(tmp_path / "second.toml")
    assert gate.promise == {} and gate.gate.score == "vendi_score"
    assert "It promises nothing" in (tmp_path / "second.toml").read_text(encoding="utf-8").splitlines()[1]
    told, _ = run("calibrate", "gate.parquet", "-o", "third.toml", "--target-risk", "20%", "--format", "json")
    tree = json.loads(told)
    assert not tree["promise"]["holds"] and tree["tries"] == {"number": 3, "declared": 1}


def test_the_identical_command_is_no_new_try(calibrated: Path, tmp_path: Path) -> None:
    """Nor is another output, a page, costs, or the result in the place of the folder; nor the first after a second."""
    run("calibrate", calibrated)
    record = calibrated / TRIES_FILE
    assert len(record.read_bytes().splitlines()) == 1
    for i, arguments in enumerate(([calibrated], [calibrated, "--cost-escape", 50], ["gate.parquet"])):
        run("calibrate", *arguments, "-o", f"again{i}.toml")
        assert read_gate(tmp_path / f"again{i}.toml").promise
    run("calibrate", calibrated, "--confidence", "90%", "-o", "second.toml")
    run("calibrate", calibrated, "-o", "first.toml")
    run("calibrate", calibrated, "--confidence", "90%", "-o", "second.toml")
    assert read_gate(tmp_path / "first.toml").promise and not read_gate(tmp_path / "second.toml").promise
    assert len(record.read_bytes().splitlines()) == 2


def test_other_readings_are_a_new_try(labelled: Path, tmp_path: Path, fake: FakeCaptioner) -> None:
    run("calibrate", labelled)
    fake.say = lambda name: tuple(reversed(say(name)))  # the same name of a model, and the seed does not bind it
    told, _ = run("calibrate", labelled, "--restart")
    assert "No promise: this is try 2" in told and read_gate(tmp_path / "gate.toml").promise == {}


def test_what_is_refused_is_no_try_and_the_least_cost_is_one(calibrated: Path, tmp_path: Path) -> None:
    run("calibrate", calibrated, "--score", "view_contrast", code=2)
    run("calibrate", calibrated)
    assert read_gate(tmp_path / "gate.toml").promise
    cost = ("--rule", "cost", "--cost-escape", 50, "--cost-review", 2, "-o", "cost.toml")
    _, error = run("calibrate", calibrated, *cost)
    assert "try" not in error, "it was to promise nothing"
    told, _ = run("calibrate", calibrated, "--score", "vendi_score", "-o", "third.toml")
    assert "No promise: this is try 3 on these labels" in told


def test_declared_tries_share_the_chance_of_being_wrong(calibrated: Path, tmp_path: Path) -> None:
    bounds = {}
    for name, arguments in {
        "a": ("--tries", 2, "--target-risk", "20%"),
        "b": ("--target-risk", "20%", "--score", "vendi_score"),  # what was declared at the first holds
        "c": ("--target-risk", "20%", "--score", "cocoa", "--tries", 5),
    }.items():
        told, _ = run("calibrate", calibrated, "-o", f"{name}.toml", *arguments)
        bounds[name] = told, read_gate(tmp_path / f"{name}.toml").promise
    assert "Try 1 of 2 that were declared" in bounds["a"][0] and "upper bound at 97.5%" in bounds["a"][0]
    assert bounds["b"][1]["try"] == 2 and bounds["b"][1]["tries"] == 2 and bounds["b"][1]["confidence"] == 0.95
    promise = bounds["a"][1]
    assert promise["upper_bound"] == pytest.approx(upper_bound(promise["errors"], promise["of"], 0.975))
    assert bounds["c"][1] == {} and "try 3 on these labels, and 2 were declared" in bounds["c"][0]
    assert "--tries 5 comes too late" in bounds["c"][0]


def test_images_that_no_try_has_seen_certify_again(labelled: Path, tmp_path: Path) -> None:
    run("calibrate", labelled, "--score", "vendi_score")
    folder_of(labelled, *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(PER_CLASS, PER_CLASS + 20)))
    told, _ = run("calibrate", labelled, "-o", "more.toml")
    assert "180 images were in a try before, so they choose; the 60 that are new certify" in told
    promise = read_gate(tmp_path / "more.toml").promise
    assert promise["tested_on"] == 60 and promise["chosen_on"] == 180
    told, _ = run("calibrate", labelled, "-o", "less.toml", "--confidence", "90%")
    assert "No promise: this is try 3 on these labels" in told


def test_new_images_that_are_too_few_wait(labelled: Path, tmp_path: Path) -> None:
    run("calibrate", labelled, "--target-risk", "20%")
    folder_of(labelled, *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(PER_CLASS, PER_CLASS + 3)))
    told, _ = run("calibrate", labelled, "--target-risk", "20%", "-o", "few.toml")
    assert "9 new images are kept until there are" in told and "180 labelled readings" in told
    assert read_gate(tmp_path / "few.toml").promise, "the identical command on the images of before"
    told, _ = run("calibrate", labelled, "--target-risk", "20%", "-o", "score.toml", "--score", "vendi_score")
    assert "No promise: this is try 2" in told and "there are 9. Add them" in told


def test_a_copy_of_the_labels_takes_its_tries_along_and_a_subset_is_no_new_set(labelled: Path, tmp_path: Path) -> None:
    run("calibrate", labelled)
    other = Path(shutil.copytree(labelled, tmp_path / "moved"))
    (other / "none" / "none_001.png").unlink()
    (other / "dent" / "dent_001.png").rename(other / "dent" / "renamed.png")
    told, _ = run("calibrate", other, "-o", "moved.toml")
    assert "No promise: this is try 2 on these labels" in told
    assert TRIES_FILE not in told and TRIES_FILE not in json.dumps(read_provenance(tmp_path / "moved.parquet"))


@pytest.mark.parametrize("damage", [b'{"identity": "x", "images"', b"\xff\x00", b'{"images": []}'])
def test_a_damaged_record_promises_nothing(calibrated: Path, tmp_path: Path, damage: bytes) -> None:
    run("calibrate", calibrated)
    record = calibrated / TRIES_FILE
    record.write_bytes(damage)
    (tmp_path / TRIES_FILE).unlink()  # the record at the readings
    told, _ = run("calibrate", calibrated, "-o", "second.toml")
    assert "No promise: this is try 2" in told and read_gate(tmp_path / "second.toml").promise == {}
    assert len(record.read_bytes().splitlines()) == 2


def test_where_the_labels_cannot_be_written_tries_are_remembered_beside_the_output(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = vlmgate.calibration.tries._append

    def refuses(path: Path, text: str) -> None:
        if path.parent == calibrated:
            raise PermissionError(13, "Permission denied")
        append(path, text)

    monkeypatch.setattr(vlmgate.calibration.tries, "_append", refuses)
    told, _ = run("calibrate", calibrated)
    assert f"{TRIES_FILE} cannot be written (Permission denied), so this try on the labels is remembered in" in told
    told, _ = run("calibrate", calibrated, "--score", "vendi_score", "-o", "second.toml")
    assert "No promise: this is try 2" in told
    monkeypatch.setattr(vlmgate.calibration.tries, "_append", lambda path, text: refuses(calibrated / "x", text))
    _, error = run("calibrate", calibrated, "--score", "cocoa", "-o", "third.toml", code=2)
    assert "cannot remember this try" in error and not (tmp_path / "third.toml").exists()


# --- what is said is true, and of use ---------------------------------------------------------------------------------


def test_a_model_that_answers_good_to_all_is_told_as_useless_first(tmp_path: Path, fake: FakeCaptioner) -> None:
    """120 images, 60 of them bad: 119 are answered 'good'. With few defects even the promise holds."""
    fake.say = lambda name: ("a grey part",)
    fake.answer = lambda name: ("bad",) if name.endswith("bad_001.png") else ("good",)
    folder_of(tmp_path / "half", *(f"{c}/{c}_{i:03d}.png" for c in ("good", "bad") for i in range(60)))
    told, error = run("calibrate", tmp_path / "half", code=2, page=True)
    first = "This model sees nothing of what the labels say: it answers 'good' to 119 of 120 images, 59 defective parts"
    page = (tmp_path / "gate_calibration" / "index.html").read_text(encoding="utf-8")
    assert told.startswith(first) and page.index("sees nothing of what the labels say") < page.index("No promise")
    assert "sees nothing" in error and "higher" not in error
    fake.answer = lambda name: ("good",)
    folder_of(tmp_path / "few", *(f"{c}/{c}_{i:03d}.png" for c, n in (("good", 200), ("bad", 6)) for i in range(n)))
    told, _ = run("calibrate", tmp_path / "few", "-o", "few.toml", "--format", "json")
    assert json.loads(told)["warnings"][0].startswith("This model sees nothing")


def test_the_built_in_model_is_disowned(calibrated: Path, tmp_path: Path) -> None:
    told, error = run("calibrate", calibrated, page=True)
    page = (tmp_path / "gate_calibration" / "index.html").read_text(encoding="utf-8")
    for text in (told, page, run("calibrate", calibrated, "--format", "json")[0]):
        assert "knows rendered sample parts only" in text
    assert "knows rendered sample parts only" not in error  # once is enough


def test_overkill_and_escapes_are_said_always_with_what_is_accepted(calibrated: Path, tmp_path: Path) -> None:
    cost = ("--rule", "cost", "--cost-escape", 50, "--cost-review", 2)
    for arguments, where in (((), "had no part in"), (cost, "it was chosen on"), (("--score", "cocoa"), "had no part")):
        told, _ = run("calibrate", calibrated, *arguments)
        assert re.search(r"Overkill: \d+ of \d+ good parts .* Escapes: \d+ of \d+ defective parts pass as good", told)
        assert f"what the gate accepts with the labels, on images that {where}" in told
        assert re.search(r"miss rate +\d", told) and "(exact 95% intervals)" in told
    told, _ = run("calibrate", calibrated, "--format", "json")
    tree = json.loads(told)
    part, whole = tree["accepted"]["figures"]["effectiveness"]
    assert whole == tree["promise"]["count"] and whole - part == tree["promise"]["errors"]
    assert tree["accepted"]["escapes"] == tree["promise"]["escapes"]
    assert interval(0, 36) == pytest.approx((0.0, 1 - 0.025 ** (1 / 36)))


def test_the_best_score_is_that_of_the_table(calibrated: Path) -> None:
    told, _ = run("calibrate", calibrated, "--format", "json")
    tree = json.loads(told)
    rows = {row["score"]: row["aurc"]["value"] for row in tree["quality"] if row["score"] != "random"}
    assert rows[tree["best"]["score"]] == pytest.approx(min(rows.values()))
    assert rows[tree["chosen"]["score"]] == pytest.approx(min(rows.values())), "of the images within the limits"


def test_no_number_of_samples_is_behind_itself(calibrated: Path) -> None:
    told, _ = run("calibrate", calibrated)
    fewest = re.search(r"On all images (\d+) samples are (best\.|the fewest .* behind (\d+)\.)", told)
    assert fewest is not None and fewest[1] != fewest[3]


def test_why_fewer_samples_are_not_compared(calibrated: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "two", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(PER_CLASS)))
    told, _ = run("calibrate", tmp_path / "two", "--num-samples", 2, "-o", "two.toml")
    assert "one alone cannot disagree" in told and "several views" not in told


def test_why_there_is_no_limit_on_novelty(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder_of(tmp_path / "few", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(25)))
    told, _ = run("calibrate", tmp_path / "few", "--target-risk", "30%")
    there = int(re.search(r"features of 30 images that choose, and there are (\d+)", told).group(1))  # type: ignore[union-attr]
    assert 10 < there < 30
    fake.features = lambda name: None
    told, _ = run("calibrate", tmp_path / "few", "--target-risk", "30%", "--restart", "-o", "none.toml")
    assert "no limit on novelty: the readings hold no vision features" in told


def test_one_right_reading_gives_no_auroc(tmp_path: Path, fake: FakeCaptioner) -> None:
    fake.say = lambda name: ("a grey part",)
    fake.answer = lambda name: ("none",) if "000" in name else (CLASSES[(CLASSES.index(name.split("/")[0]) + 1) % 3],)
    folder_of(tmp_path / "bad", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(1, 30)), "none/none_000.png")
    told, _ = run("calibrate", tmp_path / "bad", "--format", "json", code=2)
    assert {row["auroc"]["value"] for row in json.loads(told)["quality"]} == {None}


def test_a_number_of_labels_is_named_only_where_it_means_something(labelled: Path) -> None:
    """Never fewer than nothing new, and none where the readings are wrong about as often as is allowed."""
    told, error = run("calibrate", labelled, "--target-risk", "1%", code=2)
    assert "new labelled images like these" in told and "higher --target-risk" not in error
    found = _images_at(0.019, 0.02, 0.95), _images_at(0.0, 0.02, 0.95), _images_at(0.03, 0.02, 0.95)
    assert found == (None, 149, None)


def test_names_that_the_model_never_answers_are_told_after_the_first_images(
    tmp_path: Path, fake: FakeCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "digits", *(f"{c}/{c}_{i:03d}.png" for c in ("0", "1") for i in range(30)))
    fake.answer = lambda name: ("I cannot say",)
    read_before: list[int] = []
    message = CalibrationProgress.message

    def heard(self: CalibrationProgress, text: str) -> None:
        read_before.extend([len(fake.read_names)] if "none of the first" in text else [])
        message(self, text)

    monkeypatch.setattr(CalibrationProgress, "message", heard)
    _, error = run("calibrate", tmp_path / "digits", "--batch-size", 4, code=2)
    assert "none of the first 8 images was answered with one of 0, 1" in error and "--label-map '0=NAME'" in error
    assert read_before == [8]
    fake.answer = answer
    folder_of(tmp_path / "good", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(5)))
    _, error = run("calibrate", tmp_path / "good", "-o", "good.toml", code=2)
    assert "none of the first" not in error


# --- a gate finds its model -------------------------------------------------------------------------------------------


def test_a_gate_finds_its_model_from_another_folder(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was when it was calibrated, or by the same path beside the gate; else --model is named."""
    model = tmp_path / "plant" / "models" / "a"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path / "plant")
    run("calibrate", labelled, "--model", "models/a")
    gate = tmp_path / "plant" / "gate.toml"
    picture_file(tmp_path / "tonight" / "none_001.png")
    monkeypatch.chdir(tmp_path)
    run("scan", "tonight", "--gate", gate, "-o", "one.parquet")
    moved = Path(shutil.move(tmp_path / "plant", tmp_path / "moved")) / "gate.toml"
    run("scan", "tonight", "--gate", moved, "-o", "two.parquet")
    shutil.move(tmp_path / "moved" / "models" / "a", tmp_path / "b")
    _, error = run("scan", "tonight", "--gate", moved, "-o", "three.parquet", "-q", code=2)
    assert "models/a is neither here nor beside the gate" in error and "--model FOLDER" in error
    run("scan", "tonight", "--gate", moved, "--model", "b", "-o", "three.parquet")
    (tmp_path / "moved" / "models" / "a").mkdir()
    shutil.copy(tmp_path / "b" / "config.json", tmp_path / "moved" / "models" / "a")
    (tmp_path / "moved" / "models" / "a" / "model.safetensors").write_bytes(b"other weights")
    _, error = run("scan", "tonight", "--gate", moved, "-o", "four.parquet", "-q", code=2)
    assert "another model or other weights" in error

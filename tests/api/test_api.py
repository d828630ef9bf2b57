"""The same from Python: nothing printed, everything raised, whatever was imported first."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import pytest
import typer

import vlmgate
from tests.support.documents import marked
from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, folder_of, let_it_read, picture_file
from tests.support.paths import ROOT
from vlmgate import Gate, GateError, NoImagesError, Progressed, Reason, Route, UsageError, calibrate, scan
from vlmgate.api.options import CalibrateOptions, ScanOptions
from vlmgate.cli import app
from vlmgate.config import SamplingConfig
from vlmgate.config.calibrate import CALIBRATE
from vlmgate.config.options import Opt
from vlmgate.config.scan import SCAN
from vlmgate.gate.file import GateFile, sampling_of
from vlmgate.gate.rules import Gate as Rule
from vlmgate.store.result import TRIES_FILE, write_gate

CLASSES = ("none", "dent", "crack")


def label_of(name: str) -> str:
    """Return the class that a sample image is called after."""
    stem = re.sub(r"_\d+$", "", Path(name).stem)
    return stem.replace("_", " ")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCaptioner:
    captioner = FakeCaptioner(lambda name: DISAGREE if "3" in name else AGREE, answer=lambda name: (label_of(name),))
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return captioner


@pytest.mark.parametrize(
    "first",
    [
        "import vlmgate.run.loop, vlmgate.calibration.run, vlmgate.cli",
        "import vlmgate; vlmgate.scan; vlmgate.calibrate",
        "from vlmgate import scan, calibrate, Gate",
        "pass",
    ],
)
def test_the_public_names_are_functions_whatever_was_imported_first(first: str) -> None:
    code = (
        f"{first}\nfrom vlmgate import scan, calibrate, Gate\nimport vlmgate, vlmgate.run.loop, vlmgate.calibration.run"
    )
    code += "\nassert vlmgate.scan is scan and vlmgate.calibrate is calibrate"
    code += "\nprint(scan.__module__, calibrate.__module__, Gate.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vlmgate.api.functions"] * 3


def test_no_public_name_is_the_name_of_a_module() -> None:
    modules = {path.stem for path in Path(vlmgate.__file__).parent.iterdir()}
    assert not modules & set(vlmgate.__all__)


def test_importing_the_package_and_its_api_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "pyarrow", "matplotlib", "numpy", "PIL", "scipy", "rich", "typer")
    code = f"import sys; from vlmgate import scan, calibrate, Gate; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_are_those_of_the_command_line() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    own = {"out", "config", "format", "quiet", "verbose", "max_routed", "null", "folder", "source"}
    for name, options in (("scan", ScanOptions), ("calibrate", CalibrateOptions)):
        assert {p.name for p in commands[name].params} - own == set(options.__annotations__), name


@pytest.mark.parametrize(("declared", "options"), [(SCAN, ScanOptions), (CALIBRATE, CalibrateOptions)])
def test_options_take_what_is_declared(declared: Mapping[str, Opt], options: type) -> None:
    """Whatever the command line hands on is a value that the type of the Python option allows, None included."""
    hints = get_type_hints(options)
    assert list(declared) and set(hints) == set(declared)
    for name, opt in declared.items():
        allowed = set(get_args(hints[name])) if get_origin(hints[name]) in (Union, UnionType) else {hints[name]}
        for kind in get_args(opt.kind) if get_origin(opt.kind) in (Union, UnionType) else (opt.kind,):
            if opt.several and kind is not type(None):
                assert {str, Sequence[str]} <= allowed, name
            else:
                assert kind in allowed or kind is type(None), name


def test_scan_returns_what_is_in_the_file_and_prints_nothing(
    tmp_path: Path, fake: FakeCaptioner, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(5)))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    told: list[Progressed] = []
    result = scan("images", num_samples=4, limit="noise <= 500", progress=told.append)
    assert capfd.readouterr() == ("", "")
    assert result.path == Path("images.parquet") and result.complete
    assert result.table.num_rows == len(result.rows) == 6
    assert [row.file_name for row in result.routed] == ["broken.png", "part_3.png"]
    assert len(result.accepted) == 4 == result.counts["auto_accept"]["images"]
    assert told[-1].done == told[-1].total == 6 and any(one.message for one in told)
    with pytest.raises(FrozenInstanceError):
        result.path = Path("x")  # type: ignore[misc]
    fake.history.clear()
    assert scan("images", num_samples=4, review_budget=3).counts["human_review"]["images"] == 3
    assert fake.history == []


def test_a_callback_that_fails_does_not_end_the_run(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder_of(tmp_path / "images", "a.png")

    def fails(_: Progressed) -> None:
        raise ValueError("a bug of the caller")

    assert scan(tmp_path / "images", progress=fails).complete


def test_what_goes_wrong_is_raised(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder_of(tmp_path / "images", "a.png", "b.png")
    with pytest.raises(UsageError, match="no such folder"):
        scan("nowhere")
    with pytest.raises(UsageError, match="no such folder"):
        scan("x" * 5000)
    with pytest.raises(vlmgate.ConfigError, match="num_samples is 1"):
        scan("images", num_samples=1)
    with pytest.raises(GateError, match="exclude each other"):
        scan("images", threshold=1.5, review_budget="10%")
    with pytest.raises(GateError, match="cannot read the gate"):
        Gate.load("none.toml")
    with pytest.raises(NoImagesError):
        scan([])
    with pytest.raises(TypeError, match="did you mean 'num_samples'"):
        scan("images", num_sample=3)  # type: ignore[call-arg]

    def dead(_: str) -> tuple[str, ...]:
        raise RuntimeError("out of order")

    fake.say = dead
    with pytest.raises(vlmgate.ModelError, match="out of order"):
        scan("images")
    assert Path("images.parquet").exists()  # every image has a row all the same


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_when_the_result_is_written(
    tmp_path: Path, fake: FakeCaptioner, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(4)))

    def say(name: str) -> tuple[str, ...]:
        if name == "part_2.png":
            os.kill(os.getpid(), number)
        return AGREE

    fake.say = say
    heard: list[int] = []
    former = signal.signal(number, lambda n, _: heard.append(n))
    try:
        result = scan("images", batch_size=1)
    finally:
        signal.signal(number, former)
    assert heard == [number] and not result.complete
    assert [r.file_name for r in result.rows if r.reason == Reason.NOT_READ] == ["part_2.png", "part_3.png"]
    fake.say = lambda _: AGREE
    assert scan("images", batch_size=1).complete
    if number == signal.SIGINT:
        fake.say = say
        with pytest.raises(KeyboardInterrupt):
            scan("images", batch_size=1, restart=True)


# --- gates ------------------------------------------------------------------------------------------------------------


def gate_at(path: Path, rule: Rule, **sampling: object) -> Gate:
    """Write a gate of this rule and load it."""
    read = sampling_of(vars_of(SamplingConfig(num_samples=4)) | sampling)
    data = {"date": "2026-11-20T08:00:00+00:00", "sha256": "0"}
    write_gate(path, GateFile(rule, "words", "builtin", None, {"content": "x"}, read, data=data))
    return Gate.load(path)


def vars_of(config: SamplingConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in SamplingConfig.__dataclass_fields__}


def test_a_gate_judges_rows_and_whatever_is_not_known_counts_against_them(tmp_path: Path) -> None:
    gate = gate_at(tmp_path / "gate.toml", Rule("vendi_score", 1.5))
    assert "vendi_score ≤ 1.5 (gate.toml, 2026-11-20)" in gate.rule and gate.promise == {}
    assert gate.reads["num_samples"] == 4 and gate.reads["model"] == "builtin"
    assert gate.decide({"vendi_score": 1.4}).route is Route.AUTO_ACCEPT
    assert gate.decide({"vendi_score": 1.6}).reason is Reason.DISAGREED
    good = {"vendi_score": 1.0, "captions": ["a dent"] * 4, "caption_finishes": ["stop"] * 4}
    assert gate.decide(good).route is Route.AUTO_ACCEPT
    for changed in (
        {"vendi_score": None},
        {"vendi_score": float("nan")},
        {"reason": "unreadable"},
        {"reason": "cut_off"},
        {"captions": ["a dent", "a dent", "a dent", ""]},
        {"captions": ["I cannot tell."] * 4},
        {"caption_finishes": ["stop", "stop", "length", "stop"]},
        {"captions": ["a dent"] * 3, "caption_finishes": ["stop"] * 3},  # scores of another K
    ):
        assert gate.decide(good | changed).route is Route.HUMAN_REVIEW, changed
    assert gate.decide({}).route is Route.HUMAN_REVIEW
    for changed in ({"reason": "Cut_Off"}, {"error": "truncated"}, {"num_samples": 3}, {"vendi_score": 0.0}):
        assert gate.decide(good | changed).route is Route.HUMAN_REVIEW, changed
    # What another gate decided is no matter.
    assert gate.decide(good | {"reason": "most_uncertain"}).route is Route.AUTO_ACCEPT


def test_a_gate_with_a_question_wants_an_answer(tmp_path: Path) -> None:
    asked = {"question": "Which?", "choices": ("ok", "dent")}
    gate = gate_at(tmp_path / "gate.toml", Rule("answer_share", 0.75), **asked)
    row = {"vendi_score": 4.0, "answer_share": 1.0, "answer": "ok"}
    assert gate.decide(row).route is Route.AUTO_ACCEPT
    assert gate.decide(row | {"answer": None}).reason is Reason.NO_ANSWER
    assert gate.decide(row | {"vendi_score": None}).route is Route.HUMAN_REVIEW
    cut = {"answers": ["ok"] * 4, "answer_finishes": ["stop", "stop", "stop", "length"]}
    assert gate.decide(row | cut).reason is Reason.ANSWER_CUT_OFF


def test_a_tie_that_another_gate_broke_is_no_answer_for_a_gate_of_shares(tmp_path: Path) -> None:
    asked = {"question": "Which?", "choices": ("ok", "dent")}
    row = {"vendi_score": 1.0, "answer_share": 0.5, "answer": "ok", "answer_probability": 0.9}
    old = gate_at(tmp_path / "old.toml", Rule("vendi_score", 1.5), **asked)
    new = gate_at(tmp_path / "new.toml", Rule("answer_probability", 0.75), **asked)
    tied, most = ({"answers": said} for said in (["ok", "ok", "dent", "dent"], ["ok", "ok", "dent", "unsure"]))
    for held, reason in ((tied, Reason.NO_ANSWER), ({}, Reason.NO_ANSWER), (most, Reason.AGREED)):
        assert old.decide(row | held).reason is reason
        assert new.decide(row | held).route is Route.AUTO_ACCEPT
    assert old.decide(row | {"answer_probability": None}).route is Route.AUTO_ACCEPT, "of before there were such gates"


def test_from_labels_to_a_gate_to_decisions_as_the_scan_makes_them(tmp_path: Path, fake: FakeCaptioner) -> None:
    fake.say = lambda name: (f"a part with {label_of(name)}",) if not name.endswith("5.png") else DISAGREE
    fake.answer = lambda name: (label_of(name),) if not name.endswith("5.png") else ("dent", "crack", "none", "unsure")
    fake.features = lambda name: tuple(float(ord(name[i])) + len(name) for i in (0, 1, -5, -6))
    folder_of(tmp_path / "labelled", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(40)))
    done = calibrate("labelled", target_risk=0.2, no_page=True, num_samples=4)
    assert done.gate is not None and done.why_none is None and done.page is None
    assert done.figures["promise"]["holds"] and done.readings == Path("gate.parquet")
    result = scan("labelled", gate=done.gate.path, out="again.parquet")
    gate = Gate.load("gate.toml")
    assert {gate.decide(row).route for row in result.rows} == {Route.AUTO_ACCEPT, Route.HUMAN_REVIEW}
    for row, held in zip(result.rows, result.table.to_pylist(), strict=True):
        assert gate.decide(row).route == gate.decide(held).route == row.route
    assert gate.decide(replace(result.accepted[0], reason=Reason.REFUSED)).route is Route.HUMAN_REVIEW
    with pytest.raises(GateError, match="calibrated for something else"):
        scan("labelled", gate="gate.toml", out="other.parquet", temperature=0.5)


def test_terms_are_a_path_its_name_or_the_text_itself(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder_of(tmp_path / "images", "a.png")
    fake.say = lambda name: ("it has a flow mark",)
    path = tmp_path / "terms.toml"
    path.write_text('[[finding]]\nid = "flow_mark"\nen = ["flow mark"]\n')
    assert scan("images", out="none.parquet", num_samples=4).rows[0].reason == Reason.NO_CLAIM
    for i, terms in enumerate((path, "terms.toml", path.read_text())):
        done = scan("images", out=f"{i}.parquet", num_samples=4, terms=terms)
        assert [row.file_name for row in done.accepted] == ["a.png"]


def test_labels_that_are_too_few_give_no_gate_and_say_what_it_takes(tmp_path: Path, fake: FakeCaptioner) -> None:
    folder_of(tmp_path / "labelled", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(8)))
    for say in (lambda name: AGREE, lambda name: (f"a part with {label_of(name)}",)):  # AGREE disputes most answers
        fake.say = say
        done = calibrate("labelled", target_risk="1%", no_page=True, num_samples=4, restart=True)
        assert done.gate is None and done.why_none is not None and "labelled images" in done.why_none
    assert not Path("gate.toml").exists() and done.readings.exists()
    with pytest.raises(UsageError, match="no such folder"):
        calibrate("nowhere")


# --- README and manual ------------------------------------------------------------------------------------------------


def test_the_examples_in_readme_and_manual_run_as_they_are_written(
    tmp_path: Path, fake: FakeCaptioner, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the sample images and a fake that reads them well, in one session, one after the other."""
    shutil.copytree(ROOT / "sample_images", tmp_path / "sample_images", ignore=shutil.ignore_patterns(TRIES_FILE))
    fake.say = lambda name: (f"a part with {label_of(name)}",)
    fake.answer = lambda name: (label_of(name),) if "part" not in name else ("none",)
    blocks = marked("python example")
    assert len(blocks) == 4
    session: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "example", "exec"), session)
    told = capsys.readouterr().out
    assert re.search(r"\d+ accepted, \d+ for people, in inbox\.parquet", told)
    assert "accepted is " in told and "at most 10% are wrong" in told
    assert "line2/part_0044.jpg for a person: unreadable" in told
    assert {p.name for p in tmp_path.iterdir()} >= {"inbox.parquet", "gate.toml", "gate.parquet", "tonight.parquet"}


def test_a_list_of_files_from_python(tmp_path: Path, fake: FakeCaptioner) -> None:
    picture_file(tmp_path / "a" / "one.png")
    picture_file(tmp_path / "b" / "two.png")
    result = scan([Path("a/one.png"), "b/two.png", "c/none.png"])
    assert result.path == Path("listed.parquet")
    assert [(r.file_name, r.reason) for r in result.rows] == [
        ("a/one.png", "agreed"),
        ("b/two.png", "agreed"),
        ("c/none.png", "unreadable"),
    ]

"""With a model server, every command does what it does with a model here, as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.fakes import folder_of
from tests.support.faulty_server import Asked, FaultyServer, refusal
from vlmgate.cli import app
from vlmgate.gate.file import read_gate
from vlmgate.store.result import read_result

runner = CliRunner()
CLASSES = ("none", "dent", "crack")


@pytest.fixture
def labelled(tmp_path: Path, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty parts of each class, every fifth of which the server describes at random and answers wrongly."""
    monkeypatch.chdir(tmp_path)
    folder = folder_of(tmp_path / "labelled", *(f"{c}/{c}_{i:03d}.png" for c in CLASSES for i in range(40)))
    folder_of(tmp_path / "tonight", *(f"none_{i:03d}.png" for i in range(20)))
    found = [*folder.rglob("*.png"), *(tmp_path / "tonight").glob("*.png")]
    known = {Image.open(path).tobytes()[:600]: path for path in found}
    odd = ("a dent", "no defect at all", "a long crack", "rust on a gear", "some stains", "a plate")

    def say(asked: Asked, sample: int) -> str:
        if asked.is_trial:
            return "a test image"
        kind, number = known[asked.name].stem.split("_")
        hard, question = int(number) % 5 == 0, "Answer with one of" in asked.prompt
        if question:
            other = CLASSES[(CLASSES.index(kind) + 1) % 3]
            return (other, kind, other, other, "unsure")[sample % 5] if hard else kind
        return odd[sample % len(odd)] if hard else f"a part with {kind}"

    faulty.say = say
    return folder


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def test_from_labels_to_a_gate_to_a_split_folder(labelled: Path, tmp_path: Path, faulty: FaultyServer) -> None:
    server = ("--endpoint", faulty.url)
    told, _ = run("calibrate", labelled, *server, "--model", "plant/vlm", "--max-side", 512, "-k", 8, "--no-page")
    assert "Promise: at most 10% of accepted readings are wrong" in told
    assert len(faulty.images) == 2 * 120  # captions and answers, each in one request; none to measure the time
    text = (tmp_path / "gate.toml").read_text(encoding="utf-8")
    assert f'endpoint = "{faulty.url}"' in text and 'model = "plant/vlm"' in text
    gate = read_gate(tmp_path / "gate.toml")
    assert not gate.measures_novelty and gate.features is None

    told, _ = run("scan", "tonight", "--gate", "gate.toml", *server, code=5)  # no defects tonight
    assert "vlm · model server · " in told and "Nothing is promised of this result" in told
    rows, provenance = read_result(tmp_path / "tonight.parquet")
    routes = {row.file_name: row.route for row in rows}
    assert len(routes) == 20
    assert {name for name, route in routes.items() if route == "human_review"} == {
        f"none_{i:03d}.png" for i in range(0, 20, 5)
    }
    assert provenance["fingerprint"]["checkpoint.max_side"] == "512"

    _, told = run("scan", "tonight", "-o", "b.parquet", "--gate", "gate.toml", *server, "--model", "other", code=2)
    assert "model 'other' (calibrated with 'plant/vlm')" in told
    _, told = run("scan", "tonight", "-o", "b.parquet", "--gate", "gate.toml", code=2)
    assert "name a server of that model: --endpoint URL" in told and faulty.url in told


def test_scan_info_and_show(labelled: Path, tmp_path: Path, faulty: FaultyServer) -> None:
    options = ("--endpoint", faulty.url, "--model", "m", "--choices", "none,dent,crack", "-k", 5)
    told, _ = run("scan", "tonight", *options, "-o", "unlikely.parquet")
    assert re.search(r"auto-accepted +0 +0\.0%", told)  # each answer has a probability of exp(-2)
    faulty.takes_logprobs = False
    told, _ = run("scan", "tonight", *options)
    assert re.search(r"auto-accepted +16 +80\.0%", told)  # shares stand in; three of five are too few
    told, _ = run("info", "tonight.parquet")
    assert "model.server.url" in told and "vision features (novelty)" in " ".join(told.split())
    told, _ = run("show", "tonight.parquet", "none_001.png")
    assert "auto-accepted" in told and "a part with none" in told
    run("rescore", "tonight.parquet", "--score", "vendi_score", "--threshold", 3, "-o", "again.parquet")


def test_the_environment_may_name_the_server(
    labelled: Path, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMGATE_SCAN_ENDPOINT", faulty.url)
    monkeypatch.setenv("VLMGATE_SCAN_MODEL", "m")
    run("scan", "tonight")
    assert faulty.images


def test_doctor_says_what_the_server_can_do(faulty: FaultyServer) -> None:
    told, _ = run("doctor", "--endpoint", faulty.url, "--model", "m", "--format", "json")
    model = json.loads(told)["model"]
    assert model["answers"] == "yes" and model["server"]["samples"] == "8 in one request"
    assert "load_seconds" not in model


def test_doctor_says_what_is_wrong(faulty: FaultyServer) -> None:
    faulty.behave = lambda asked: refusal("this model takes no images")
    told, complaint = run("doctor", "--endpoint", faulty.url, "--model", "m", code=1)
    assert "model.answers" in told and "this model takes no images" in complaint
    assert len(complaint.strip().splitlines()) == 1


def test_without_the_client_one_line_says_what_to_install(
    faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    _, complaint = run("doctor", "--endpoint", faulty.url, "--model", "m", code=1)
    assert "pip install 'vlmgate[endpoint]'" in complaint


def test_from_python_it_is_the_same(faulty: FaultyServer, tmp_path: Path) -> None:
    import vlmgate

    folder = folder_of(tmp_path / "images", "a.png")
    result = vlmgate.scan(folder, out=tmp_path / "out.parquet", endpoint=faulty.url, model="m", max_side=300, retries=2)
    assert [row.route for row in result.rows] == ["auto_accept"]
    with pytest.raises(vlmgate.VlmgateError, match="endpoint is"):
        vlmgate.scan(folder, out=tmp_path / "b.parquet", endpoint="gpu:8000", model="m")

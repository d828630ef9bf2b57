"""What people found among auto-accepted images, told with a bound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, folder_of, let_it_read
from vlmgate.calibration.guarantee import upper_bound
from vlmgate.calibration.labels import read_labels
from vlmgate.cli import app
from vlmgate.store.result import read_result

runner = CliRunner()


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    captioner = FakeCaptioner(lambda name: DISAGREE if "3" in name else AGREE)
    let_it_read(captioner, monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "parts", *(f"part_{i:02d}.png" for i in range(30)))
    assert runner.invoke(app, ["scan", "parts", "-q"]).exit_code == 0
    return tmp_path / "parts.parquet"


def verdicts_of(result: Path, wrong: str) -> str:
    rows, _ = read_result(result)
    judged = [r for r in rows if int(r.file_name[5:7]) < 20]
    lines = [f"{r.file_name},1,{r.sha256},{'wrong' if r.file_name == wrong else 'correct'}" for r in judged]
    return "\n".join(["file_name,page,sha256,verdict", *lines, "gone.png,1,00,correct"])


def test_accepted_images_that_were_checked_bound_the_rest(result: Path) -> None:
    review = result.with_name("parts_review")
    review.mkdir()
    (review / "verdicts.csv").write_text(verdicts_of(result, "part_01.png"), encoding="utf-8")
    told = runner.invoke(app, ["info", "parts.parquet"]).stdout
    bound = upper_bound(1, 18, 0.95)
    assert "Of 18 auto-accepted images 18 were judged" not in told
    assert "Of 27 auto-accepted images 18 were judged, 1 of them wrong or unusable" in told
    assert f"at most {bound:.2%} of all are" in told
    assert "Of 3 routed images 2 were judged, 0 of them wrong" in told
    assert "1 verdicts are on images that this result does not hold" in told
    tree = json.loads(runner.invoke(app, ["info", "parts.parquet", "--format", "json"]).stdout)
    assert tree["audit"]["accepted"] == {
        "images": 27,
        "checked": 18,
        "wrong": 1,
        "low": pytest.approx(0.00284, abs=1e-4),
        "high": pytest.approx(bound),
    }


def test_classes_are_no_verdicts(result: Path) -> None:
    Path("labels.csv").write_text("file_name,label\npart_01.png,dent\n", encoding="utf-8")
    done = runner.invoke(app, ["info", "parts.parquet", "--verdicts", "labels.csv"])
    assert done.exit_code == 2 and "holds no verdicts" in done.stderr


def test_what_was_annotated_in_label_studio_comes_back(tmp_path: Path) -> None:
    def task(name: str, *annotations: dict[str, object]) -> dict[str, object]:
        return {"data": {"file_name": name, "page": 1, "sha256": name[0] * 4}, "annotations": list(annotations)}

    def chosen(verdict: str, answer: str | None = None) -> dict[str, object]:
        results = [{"from_name": "verdict", "type": "choices", "value": {"choices": [verdict]}}]
        results += [{"from_name": "answer", "type": "choices", "value": {"choices": [answer]}}] if answer else []
        return {"result": results}

    tasks = [
        task("a.png", chosen("correct")),
        task("b.png", chosen("correct"), chosen("wrong", "dent")),
        task("c.png", {"result": [], "was_cancelled": True}),
        task("d.png"),
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    labels = read_labels(tmp_path / "export.json")
    assert labels.kind == "verdict"
    assert labels.by_name == {("a.png", 1): "correct", ("b.png", 1): "wrong"}
    assert labels.readings == {("b.png", 1): "dent"}
    assert any("2 rows without a verdict" in text for text in labels.ignored)

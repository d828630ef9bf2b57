"""The bench of the built-in model, what it draws, and the sample images."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.bench._anomalies import KINDS, draw_anomaly
from tests.bench._builtin import ASPECTS, Reading, draw, photographs, read
from tests.bench.builtin import bars, sheets, summarise
from tests.bench.samples import PER_CONDITION, sample_files
from tests.support.paths import ROOT
from vlmgate.captioner.location import weights_folder
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Reason
from vlmgate.factory.render import Wanted, render
from vlmgate.factory.world import (
    CONDITIONS,
    FINISHES,
    NONE,
    PARTS,
    POSITIONS,
)
from vlmgate.gate.rules import HIGHER_IS_WORSE, Candidate
from vlmgate.scores.answers import Parsed
from vlmgate.scores.novelty import Reference

SAMPLES = ROOT / "sample_images"


def test_anomalies_are_no_parts_and_all_different() -> None:
    for kind in KINDS:
        images = [draw_anomaly(kind, (9, i)) for i in range(12)]
        assert len({image.tobytes() for image in images}) == 12
        assert all(image.mode == "RGB" and image.size == images[0].size for image in images)
        assert draw_anomaly(kind, (9, 3)).tobytes() == images[3].tobytes()


# --- evaluation -------------------------------------------------------------------------------------------------------


def answered(group: str, *, share: float, right: bool) -> Reading:
    """Return a reading of a part with rust, or of a sound one, that says "rust" that often."""
    made = render((99, 1), Wanted(condition="rust" if right else "none", degradation="none"))
    rust, none = Parsed("rust"), Parsed("none")
    told = tuple(rust if i < round(share * 32) else none for i in range(32))
    scores = {name: 0.0 for name in HIGHER_IS_WORSE}
    rights = dict.fromkeys(ASPECTS, right)
    candidate = Candidate.of("a", None, Reason.NO_SCORE)
    return Reading(group, made, rights, candidate, scores, (rust,) * 8, (rust,) * 8, told)


def test_answers_that_come_as_often_as_they_are_right_are_calibrated() -> None:
    calibrated = [answered("dust", share=0.75, right=i < 3) for i in range(4)]
    sure = [answered("dust", share=1.0, right=i < 3) for i in range(4)]
    assert summarise(calibrated)["answers"]["calibration_error"] == 0.0
    assert summarise(sure)["answers"]["calibration_error"] == 0.25
    assert summarise(sure)["answers"]["accuracy_without_offer"] == 0.75


def test_the_figures_come_as_tables_for_people_and_as_json_for_programs() -> None:
    figures = summarise([answered("clean", share=0.75, right=True)])
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    told = {sheet.title: sheet for sheet in sheets(figures)}
    bars_told = told["Bars"]
    assert all(row[-1] in ("ok", "MISSED") for row in bars_told.rows) and len(bars_told.rows) >= 20
    assert "| unsure on clean images, where offered | 0.000 | ≤ 0.03 | ok |" in bars_told.markdown()
    assert "\n| --- | ---: | ---: | ---: |\n" in bars_told.markdown()


def test_photographs_are_opened_as_what_is_no_part(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "b.png")
    Image.new("RGBA", (30, 20)).save(tmp_path / "a.png")
    opened = list(photographs(tmp_path))
    assert [(one.group, one.image.mode, one.made) for one in opened] == [("photograph", "RGB", None)] * 2


@pytest.mark.slow
def test_the_built_in_model_reads_its_world_and_doubts_what_it_cannot_see() -> None:
    """A small edition of `python -m tests.bench.builtin`; its bars are looser, for fewer images."""
    drawn = list(draw(seed=123, clean=60, each=4, anomalies=6))
    reference = Reference.load(weights_folder() / "novelty.npz")
    readings = read(drawn, ModelConfig(), SamplingConfig(batch_size=16), reference)
    figures = summarise(readings)
    visible, areas, answers = figures["accuracy"]["clean, visible"], figures["auroc"], figures["answers"]
    assert visible["part"]["share"] >= 0.95 and visible["finish"]["share"] >= 0.95
    assert visible["condition"]["share"] >= 0.85 and visible["position"]["share"] >= 0.8
    assert areas["vendi_score"]["all strong"] >= 0.85
    assert areas["novelty"]["anomaly"] >= 0.95
    assert answers["unparsable"] <= 0.01 and answers["unsure_though_not_offered"] <= 0.01
    assert answers["clean_unsure_images"] <= 0.05
    assert answers["accuracy_with_offer_where_sure"] > answers["accuracy_without_offer"]
    assert len(list(bars(figures))) >= 20


# --- sample images ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return {file.path: file.content for file in sample_files()}


@pytest.mark.slow
def test_the_sample_images_are_those_that_the_recipe_draws(drawn: dict[str, bytes]) -> None:
    kept = {path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*") if path.is_file()}
    assert kept == set(drawn)
    assert sum(len(content) for content in drawn.values()) <= 12_000_000
    for name, content in drawn.items():
        path = SAMPLES / name
        if path.suffix in (".csv", ".txt"):
            assert path.read_text(encoding="utf-8") == content.decode()
        elif name == "inbox/line2/part_0044.jpg":
            with Image.open(path) as broken, pytest.raises(OSError, match="truncated"):
                broken.load()
        else:
            with Image.open(path) as ours, Image.open(io.BytesIO(content)) as again:
                assert (ours.mode, ours.size) == (again.mode, again.size)
                pixels, expected = np.asarray(ours, np.float32), np.asarray(again, np.float32)
                assert ours.mode == "I;16" or np.abs(pixels - expected).mean() < 2.0


@pytest.mark.slow
def test_the_labelled_samples_say_what_they_show(drawn: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(drawn["labelled/metadata.csv"].decode())))
    assert len(rows) == len(CONDITIONS) * PER_CONDITION >= 200
    assert list(rows[0]) == [
        "file_name",
        "label",
        "part",
        "finish",
        "position",
        "degradation",
        "severity",
        "visibility",
    ]
    for row in rows:
        assert f"labelled/{row['file_name']}" in drawn
        assert row["file_name"].startswith(row["label"].replace(" ", "_") + "/")
        assert row["part"] in PARTS
        assert row["finish"] in FINISHES
        assert row["position"] in (POSITIONS if row["label"] != NONE else ("",))


def test_the_inbox_holds_what_lines_drop() -> None:
    inbox = SAMPLES / "inbox"
    with Image.open(inbox / "camera7_12bit.tif") as tiff:
        assert tiff.mode == "I;16"
        assert 3000 < np.asarray(tiff).max() <= 4095
    with Image.open(inbox / "handheld_0003.jpg") as turned:
        assert turned.getexif()[0x0112] == 6
        upright = ImageOps.exif_transpose(turned)
        assert turned.height > turned.width
        assert upright.width > upright.height
    with Image.open(inbox / "grey_0005.png") as grey:
        assert grey.mode == "L"
    assert (inbox / "part_0001 (copy).jpg").read_bytes() == (inbox / "part_0001.jpg").read_bytes()

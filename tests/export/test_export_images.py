"""Exports that have to do with image files: Label Studio, ImageFolder, thumbnails."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.fakes import AGREE, FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from tests.support.hostile import STRINGS
from tests.support.results import result_of, row
from vlmgate.config import ImageConfig
from vlmgate.errors import OutputError, UsageError
from vlmgate.export import Target
from vlmgate.export.export import Exported, export
from vlmgate.export.targets import Options
from vlmgate.report.terminal import BUILTIN_NOTICE
from vlmgate.run.loop import scan
from vlmgate.store.result import read_result

WAITING = "/data/local-files/?d="


def scanned(folder: Path, out: Path, **changes: object) -> Path:
    """Scan a folder with a fake that agrees with itself."""
    scan(config_for(folder, out, **changes), SilentProgress(), load=FakeCaptioner(lambda _: AGREE).load)
    return out


# --- Label Studio -----------------------------------------------------------------------------------------------------


def tasks_of(source: Path, out: Path, **options: Any) -> tuple[list[dict[str, Any]], str, Exported]:
    done = export(source, Target.LABEL_STUDIO, out, Options(**options))
    return json.loads(out.read_bytes()), out.with_suffix(".config.xml").read_text(encoding="utf-8"), done


def asked(tmp_path: Path) -> Path:
    rows = [
        row("line2/sure.png", agreement=1.0, captions=("x", "x"), caption="x", answer="a <b> & \"c\""),
        row("unsure.png", agreement=0.25, captions=("x", "y"), caption="x", answer="ok", page=2),
        row("empty.tif", agreement=None, captions=("", ""), caption=None),
        row("broken.heic", agreement=None),
        row("middle.png", agreement=0.5, captions=("a\nb", "c"), caption="c"),
    ]  # fmt: skip
    sampling = {"question": "Is it?", "choices": ["ok", 'a <b> & "c"']}
    return result_of(tmp_path / "r.parquet", rows, sampling=sampling, model={"model": "m", "revision": "abc"})


def test_tasks_come_with_predictions_and_the_worst_first(tmp_path: Path) -> None:
    tasks, _, done = tasks_of(asked(tmp_path), tmp_path / "t.json")
    names = [task["data"]["file_name"] for task in tasks]
    assert names == ["empty.tif", "broken.heic", "unsure.png", "middle.png", "line2/sure.png"]
    assert tasks[4]["data"]["image"] == WAITING + "line2/sure.png"
    assert tasks[1]["predictions"] == [] and "score" not in tasks[0]["predictions"][0]
    (prediction,) = tasks[2]["predictions"]
    assert prediction["score"] == 0.25 and prediction["model_version"] == "m@abc"
    caption, answer = prediction["result"]
    assert caption["value"] == {"text": ["x", "y"]} and answer["value"] == {"choices": ["ok"]}
    assert done.notes[0].startswith("3 images that browsers do not show (TIFF, HEIC, later pages), first: unsure.png;")
    assert [path.name for path in done.written] == ["t.json", "t.config.xml"]


def test_a_labelling_configuration_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "t.config.xml").write_text("mine")
    with pytest.raises(OutputError, match=r"t\.config\.xml: is there already"):
        export(asked(tmp_path), Target.LABEL_STUDIO, tmp_path / "t.json")
    assert (tmp_path / "t.config.xml").read_text() == "mine" and not (tmp_path / "t.json").exists()


def test_image_urls_keep_any_name_and_take_any_root(tmp_path: Path) -> None:
    source = result_of(tmp_path / "r.parquet", [row(text) for text in STRINGS])
    for number, (root, begins) in enumerate({WAITING: WAITING, "https://x/y": "https://x/y/", "": ""}.items()):
        tasks, _, _ = tasks_of(source, tmp_path / f"{number}.json", image_root=root)
        assert [task["data"]["file_name"] for task in tasks] == list(STRINGS)
        for task, text in zip(tasks, STRINGS, strict=True):
            url = task["data"]["image"]
            assert url.startswith(begins) and unquote(url[len(begins) :]) == text
            assert not set(url[len(begins) :]) & set("\\ #?&<>\"'\r\n\t") and url.isascii()


def test_hostile_captions_reach_the_tasks_as_they_are(tmp_path: Path) -> None:
    rows = [row("a.png", page=n + 1, agreement=0.5, captions=(t, t[::-1]), caption=t) for n, t in enumerate(STRINGS)]
    tasks, _, _ = tasks_of(result_of(tmp_path / "r.parquet", rows), tmp_path / "t.json")
    said = [task["predictions"][0]["result"][0]["value"]["text"] for task in tasks]
    assert said == [[text, text[::-1]] for text in STRINGS]
    assert [task["data"]["caption"] for task in tasks] == list(STRINGS)


def test_the_labelling_configuration_is_sound_and_holds_any_choice(tmp_path: Path) -> None:
    sampling = {"question": "Is it?", "choices": [text for text in STRINGS if 0 < len(text) < 1000]}
    source = result_of(tmp_path / "r.parquet", [row("a.png")], sampling=sampling)
    _, config, _ = tasks_of(source, tmp_path / "t.json")
    tree = ElementTree.fromstring(config)
    controls = {tag.get("name"): tag for tag in tree}
    assert [choice.get("value") for choice in controls["verdict"]] == ["correct", "wrong", "unusable"]
    assert len(controls["answer"]) == len(sampling["choices"])
    assert {tag.get("toName") for tag in tree if tag.tag in ("TextArea", "Choices")} == {"image"}


def test_its_own_sdk_finds_tasks_predictions_and_configuration_valid(tmp_path: Path) -> None:
    reason = "label-studio-sdk is not installed; .ci/run does"
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason=reason)
    tasks, config, _ = tasks_of(asked(tmp_path), tmp_path / "t.json")
    labels = interface.LabelInterface(config)
    labels.validate()
    assert sum(len(task["predictions"]) for task in tasks) == 4
    for task in tasks:
        assert labels.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert labels.validate_prediction(prediction, return_errors=True) == []
            told = prediction["result"][0]
            assert not labels.validate_prediction(prediction | {"result": [told | {"from_name": "nothing"}]})


# --- ImageFolder ------------------------------------------------------------------------------------------------------


def loaded(folder: Path, cache: Path) -> list[dict[str, Any]]:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.disable_progress_bars()
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache))
    assert list(found) == ["train"], "no name of a file makes another split"
    return list(found["train"])


NAMES = ("test/val_1.png", "line2/part.jpg", "train.png", "CON.png", "metadata.png", ".hidden.png", "__x/y.bmp")
ODD = ("a\\b.png", "C:\\x.png", "=1+1.png", "part.PNG", "PART.png", "evil\u202egnp.png", "two\nlines.png", "🔩.png")


def test_a_folder_of_images_loads_with_datasets(tmp_path: Path) -> None:
    names = sorted((*NAMES, *ODD))
    folder = folder_of(tmp_path / "in", *names)
    Image.open(folder / "train.png").save(folder / "no_extension", "PNG")
    done = export(scanned(folder, tmp_path / "r.parquet"), Target.IMAGEFOLDER, tmp_path / "out")
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    assert sorted(one["original_name"] for one in rows) == sorted([*names, "no_extension"])
    for one in rows:
        original = Image.open(folder / one["original_name"]).convert("RGB")
        assert one["image"].convert("RGB").tobytes() == original.tobytes()
        assert one["captions"] == list(AGREE * 4) and one["route"] == "auto_accept"
    assert done.notes == (BUILTIN_NOTICE,) and done.rows == len(names) + 1


def test_no_name_leads_out_of_the_folder_or_meets_another(tmp_path: Path) -> None:
    """The result is one that somebody made up: its names are hostile, its hashes are those of real images."""
    folder = folder_of(tmp_path / "in", "a.png")
    true = read_result(scanned(folder, tmp_path / "true.parquet"))[0][0]
    secret = picture_file(tmp_path / "secret.png")
    names = [*STRINGS, "../secret.png", str(secret), "in/../../secret.png"]
    rows = [row(name, sha256=true.sha256, width=12, height=9, captions=("x",)) for name in names]
    source = result_of(tmp_path / "r.parquet", [*rows, true], folder=str(folder))
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    done = export(source, Target.IMAGEFOLDER, tmp_path / "out")
    assert {path for path in tmp_path.rglob("*") if "out" not in path.relative_to(tmp_path).parts} == before
    assert f"{len(names)} images left out (gone, changed since the scan, or unreadable)" in done.notes[0]
    images = [path.name for path in (tmp_path / "out" / "train").iterdir() if path.name != "metadata.parquet"]
    assert len(images) == 1 and images[0].endswith("_a.png")


def test_file_names_on_disk_are_harmless_wherever_they_go(tmp_path: Path) -> None:
    stems = [text for text in STRINGS if 0 < len(text.encode()) < 200 and not set(text) & set("/\0")]
    folder = tmp_path / "in"
    for number, text in enumerate(stems):
        picture_file(folder / "one.png", salt=str(number)).rename(folder / f"{text}.png")
    export(scanned(folder, tmp_path / "r.parquet"), Target.IMAGEFOLDER, tmp_path / "out")
    made = sorted(path.name for path in (tmp_path / "out" / "train").iterdir())
    assert len(made) == len(stems) + 1 and made[-1] == "metadata.parquet"
    assert all(name[:7].isdigit() and name.isascii() and len(name) < 80 for name in made[:-1])
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    assert sorted(one["original_name"] for one in rows) == sorted(f"{text}.png" for text in stems)


def test_what_is_gone_or_changed_since_the_scan_is_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png", "c.png")
    (folder / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = scanned(folder, tmp_path / "r.parquet")
    (folder / "a.png").unlink()
    picture_file(folder / "b.png", salt="another")
    done = export(source, Target.IMAGEFOLDER, tmp_path / "out")
    assert done.notes[0] == "3 images left out (gone, changed since the scan, or unreadable), first: a.png"
    assert sorted(p.name for p in (tmp_path / "out" / "train").iterdir()) == ["0000003_c.png", "metadata.parquet"]


def test_links_share_the_bytes_and_later_pages_become_png(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png")
    pages = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    source = tmp_path / "r.parquet"
    scanned(folder, source, images=ImageConfig("all"))
    export(source, Target.IMAGEFOLDER, tmp_path / "out", Options(link=True))
    made = sorted((tmp_path / "out" / "train").iterdir())
    assert [p.name for p in made] == [
        "0000001_a.png", "0000002_pages.tif", "0000003_pages.png", "metadata.parquet"
    ]  # fmt: skip
    assert made[0].samefile(folder / "a.png")
    assert Image.open(made[2]).convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_a_folder_that_holds_something_is_never_replaced(tmp_path: Path) -> None:
    source = scanned(folder_of(tmp_path / "in", "a.png"), tmp_path / "r.parquet")
    with pytest.raises(OutputError, match=r"is there and not empty|lies in the image folder"):
        export(source, Target.IMAGEFOLDER, tmp_path / "in", Options(overwrite=True))
    (tmp_path / "empty").mkdir()
    export(source, Target.IMAGEFOLDER, tmp_path / "empty")
    assert len(list((tmp_path / "empty" / "train").iterdir())) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".vlmgate")]


# --- thumbnails -------------------------------------------------------------------------------------------------------


def test_thumbnails_stand_in_their_rows(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    folder = folder_of(tmp_path / "in", "b.png", "c.png", "=1+1.png")
    picture_file(folder / "wide.png", size=(900, 300))
    Image.fromarray(np.full((9, 12), 4095, "uint16")).save(folder / "deep.tif")
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = scanned(folder, tmp_path / "r.parquet")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="name their folder with --images"):
        export(source, Target.XLSX, tmp_path / "o.xlsx", Options(thumbnails=True))
    done = export(source, Target.XLSX, tmp_path / "o.xlsx", Options(thumbnails=True, images=moved))
    assert done.notes[0] == "1 image without a thumbnail (gone, changed since the scan, or unreadable), first: a.png"
    sheet, notes = openpyxl.load_workbook(tmp_path / "o.xlsx").worksheets
    assert (notes.title, notes["A1"].value, done.notes[1]) == ("notes", BUILTIN_NOTICE, BUILTIN_NOTICE)
    assert sheet["A1"].value == "thumbnail" and sheet["B1"].value == "file_name" and sheet.freeze_panes == "C2"
    shown = {sheet.cell(image.anchor._from.row + 1, 2).value: image for image in sheet._images}
    assert set(shown) == {"b.png", "c.png", "=1+1.png", "wide.png", "deep.tif"}
    assert Image.open(io.BytesIO(shown["wide.png"]._data())).size == (96, 32)
    assert sheet.row_dimensions[2].height and sheet.row_dimensions[2].height >= 70


def test_thumbnails_of_another_file_under_the_name_are_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    source = scanned(folder, tmp_path / "r.parquet")
    picture_file(folder / "b.png", salt="another")
    done = export(source, Target.XLSX, tmp_path / "o.xlsx", Options(thumbnails=True))
    assert "1 image without a thumbnail" in done.notes[0] and "first: b.png" in done.notes[0]


def test_a_result_of_before_there_was_a_column_is_exported_with_nulls(tmp_path: Path) -> None:
    source = result_of(tmp_path / "r.parquet", [row("a.png", agreement=0.5)])
    pq.write_table(pq.read_table(source).drop_columns(["novelty", "answer", "sharpness"]), source)
    export(source, Target.JSONL, tmp_path / "o.jsonl")
    told = json.loads((tmp_path / "o.jsonl").read_text())
    assert told["novelty"] is None and told["answer"] is None and told["agreement"] == 0.5


CLAIMS = {"answer_probability": 0.875, "support": 0.5, "verdict_share": 0.75, "contradiction": 0.25}


@pytest.mark.parametrize("target", [Target.CSV, Target.TSV, Target.EXCEL_CSV, Target.JSONL, Target.COCO])
def test_what_captions_claim_is_in_every_format_that_has_scores(tmp_path: Path, target: Target) -> None:
    said = {"width": 12, "height": 9, "agreement": 0.5, "captions": ("x", "y"), "caption": "x"}
    source = result_of(tmp_path / "r.parquet", [row("a.png", **said, **CLAIMS)])
    export(source, target, tmp_path / "o")
    text = (tmp_path / "o").read_text(encoding="utf-8-sig")
    if target in (Target.JSONL, Target.COCO):
        whole = json.loads(text)
        found = whole if target is Target.JSONL else whole["images"][0]
    else:
        (cells,) = csv.DictReader(io.StringIO(text), delimiter="\t" if target is Target.TSV else ",")
        found = {name: float(cells[name]) for name in CLAIMS}
    assert {name: found[name] for name in CLAIMS} == CLAIMS
    old = result_of(tmp_path / "old.parquet", [row("a.png", **said)])
    table = pq.read_table(old)
    pq.write_table(table.drop_columns(list(CLAIMS)), old)
    export(old, target, tmp_path / "o", Options(overwrite=True))


def test_a_folder_of_images_has_the_claims_and_label_studio_is_as_it_was(tmp_path: Path) -> None:
    source = scanned(folder_of(tmp_path / "in", "a.png"), tmp_path / "r.parquet")
    export(source, Target.IMAGEFOLDER, tmp_path / "out")
    stored = pq.read_table(tmp_path / "out" / "train" / "metadata.parquet").to_pylist()[0]
    assert (stored["contradiction"], stored["support"], stored["verdict_share"]) == (0.0, 1.0, 1.0)
    tasks, _, _ = tasks_of(source, tmp_path / "t.json")
    assert not set(CLAIMS) & set(tasks[0]["data"])


@pytest.mark.parametrize("where", ["in/export", "in/line2/deep", "in"])
def test_no_copies_go_into_the_folder_that_is_scanned(where: str, tmp_path: Path) -> None:
    """They would double the next night."""
    folder = folder_of(tmp_path / "in", "a.png", "line2/b.png")
    result = scanned(folder, tmp_path / "r.parquet")
    with pytest.raises(OutputError, match=r"whose next scan would read the copies; give another -o|not empty"):
        export(result, Target.IMAGEFOLDER, tmp_path / where)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(OutputError, match=r"whose next scan would read the copies"):
        export(result, Target.IMAGEFOLDER, moved / "export", Options(images=moved))
    link = tmp_path / "link"
    link.symlink_to(moved)
    with pytest.raises(OutputError, match=r"whose next scan would read the copies"):
        export(result, Target.IMAGEFOLDER, link / "export", Options(images=moved))
    assert export(result, Target.IMAGEFOLDER, tmp_path / "beside", Options(images=moved)).rows == 2
